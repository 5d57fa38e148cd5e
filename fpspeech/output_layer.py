"""The output layer of a CTC model: what it is, what it reads, and the tensors that it has."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from fpspeech.listening import Interrupted, Listener
from fpspeech.models import SpeechModel
from fpspeech.pruning import PruningError
from fpspeech.pruning.head_fit import Head


def head_of(model: SpeechModel) -> Head:
    """The layer as it is in force, float32 on the CPU; raises PruningError for other models."""
    layer = _layer(model)
    weight = layer.weight.detach().float().cpu()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
    return Head(weight.clone(), bias.cpu().clone())


def head_values(model: SpeechModel, head: Head) -> dict[str, Tensor]:
    """Its tensors by their names in the state dict; no bias where the model has none."""
    values = {f"{model.head}.weight": head.weight}
    if _layer(model).bias is not None:
        values[f"{model.head}.bias"] = head.bias
    return values


def head_inputs(
    model: SpeechModel, windows: Iterable[Tensor], listener: Listener | None = None
) -> list[Tensor]:
    """What the layer reads of each window, shape (frames, features), float32 on the CPU.

    Raises Interrupted after `listener.stop()`, PruningError for a model that is no CTC model.
    """
    found: list[Tensor] = []

    def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0][0].float().cpu().clone())

    handle = _layer(model).register_forward_pre_hook(read)
    try:
        for window in windows:
            if listener is not None and listener.stop():
                raise Interrupted("stopped while listening for the output layer")
            model.log_posteriors([window])
    finally:
        handle.remove()
    return found


def _layer(model: SpeechModel) -> nn.Linear:
    if model.head is None:
        raise PruningError(
            f"{model.source.id} is a {model.family} model, which has no output layer of frames: "
            "expected a CTC model such as Wav2Vec2"
        )
    layer = model.network.get_submodule(model.head)
    assert isinstance(layer, nn.Linear)
    return layer
