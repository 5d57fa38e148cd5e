"""An image classifier: any torch network with convolutions, and how pictures become its input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from fpspeech.models.source import ModelError, Source
from fpspeech.pruning import Observer, Replay

if TYPE_CHECKING:
    from PIL.Image import Image

Preprocess = Callable[[Sequence["Image"]], Tensor]
"""RGB pictures of any size -> the network's input, shape (pictures, channels, height, width)."""

Save = Callable[[nn.Module, Path], object]
"""Writes the network, as it is now, and all that loading it takes into a folder."""


_LAYERS = (nn.Conv2d, nn.Linear)


class ImageModel:
    """A classifier of pictures, wrapped so that it can be personalized.

    network: returns logits of shape (pictures, classes), or an object that holds them as `logits`.
    labels: the names of its outputs, in order. source: the checkpoint; by default the network
    itself, told apart by a hash over its state. exclusions: layers left dense -> the reason; by
    default the first convolution and the last layer, in the order in which the network registers
    them. save: by default `model.safetensors` with the state dict.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocess: Preprocess,
        labels: Sequence[str],
        *,
        source: Source | None = None,
        family: str = "image-classifier",
        exclusions: Mapping[str, str] | None = None,
        components: Mapping[str, tuple[str, ...]] | None = None,
        save: Save | None = None,
    ):
        self.network = network
        self.network.train(False)
        self.preprocess = preprocess
        self.labels = tuple(labels)
        self.source = source or _in_memory(network)
        self.family = family
        self.exclusions = _ends(network) if exclusions is None else dict(exclusions)
        self.components = dict(components or {})
        self._save = save or _save_state

    def observe(self, pictures: Sequence[Image], observer: Observer) -> Tensor:
        """Runs the network over RGB pictures in one batch while `observer` counts.

        Returns the logits on the way; see `logits`.
        """
        with observer.counting():
            return self.logits(pictures)

    def replays(self, pictures: Sequence[Image]) -> list[Replay]:
        """The one pass over RGB pictures that `observe` counts, to be run again and again."""
        return [Replay(partial(self.run, self.preprocess(pictures)))]

    def logits(self, pictures: Sequence[Image]) -> Tensor:
        """Logits of RGB pictures in one batch, float32 on the CPU, shape (pictures, classes).

        Raises ModelError when there is not one for each label.
        """
        with torch.inference_mode():
            output = self.run(self.preprocess(pictures))
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        if logits.shape != (len(pictures), len(self.labels)):
            raise ModelError(
                f"{self.source.id}: expected logits of shape {(len(pictures), len(self.labels))}, "
                f"a label an output, found {tuple(logits.shape)}"
            )
        return logits.float().cpu()

    def reads_tokens(self, layer: str) -> bool:
        """None does: pixels are alike."""
        return False

    @property
    def output_layer(self) -> str:
        """The name of the linear layer that puts out the logits, the last that is registered.

        Raises ModelError where the network's last layer is no linear one with a bias and an
        output a label.
        """
        layers = {n: m for n, m in self.network.named_modules() if isinstance(m, _LAYERS)}
        name, last = next(reversed(layers.items()), ("", None))
        if (
            not isinstance(last, nn.Linear)
            or last.bias is None
            or last.out_features != len(self.labels)
        ):
            raise ModelError(
                f"{self.source.id}: expected the last layer to be a linear one with a bias and "
                f"{len(self.labels)} outputs, found {name or 'no layer'} "
                f"({last}): an output prior has nowhere to go"
            )
        return name

    def save_pretrained(self, folder: Path) -> None:
        """Writes the network, as it is now, so that its own library loads it."""
        self._save(self.network, folder)

    def run(self, pixels: Tensor) -> Any:
        """What the network returns for preprocessed pictures."""
        return self.network(pixels.to(next(self.network.parameters()).device))


def _ends(network: nn.Module) -> dict[str, str]:
    convolutions = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    layers = [name for name, m in network.named_modules() if isinstance(m, _LAYERS)]
    if len(layers) < 3 or not convolutions:
        return {}
    return {
        convolutions[0]: "first convolution: it reads the picture itself",
        layers[-1]: "output layer",
    }


def _in_memory(network: nn.Module) -> Source:
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return Source(type(network).__name__, None, digest.hexdigest(), Path())


def _save_state(network: nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_model(network, str(folder / "model.safetensors"))
