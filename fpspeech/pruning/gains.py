"""A few numbers that tune a network: gains of a weight's rows, and shifts of its vectors.

They fold into the tensors they belong to, so the architecture stays what it was. Until then every
recording of a batch can have its own: the tuned tensors stay, and the outputs of their modules get
what the tuned ones would have made of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, layer_norm

from fpspeech.pruning.layers import PruningError

CHANNELS_FIRST = (nn.Conv1d, nn.GroupNorm)
NORMS = (nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Gain:
    """A tensor that is tuned: by a factor for each output, or by a term for each element.

    name: in the network's state dict. rows: w[i] · (1 + g[i]) along the first dimension; else
    w + g · mean|w|, element by element, so that g is without a unit; zeros
    stay zeros.
    """

    name: str
    rows: bool = False


class Gains:
    """The tuned tensors of a network as functions of one point; the origin is the network.

    Raises PruningError for a tensor that is not there.
    """

    def __init__(self, network: nn.Module, gains: Sequence[Gain]):
        state = network.state_dict()
        for gain in gains:
            if gain.name not in state:
                raise PruningError(f"the network has no tensor {gain.name!r} that could be tuned")
        self.network = network
        self._gains = tuple(gains)
        self._tensors = [state[gain.name].detach().cpu().clone() for gain in gains]
        self._units = [each.abs().mean() for each in self._tensors]
        self._sizes = [
            len(tensor) if gain.rows else tensor.numel()
            for gain, tensor in zip(self._gains, self._tensors, strict=True)
        ]

    @property
    def dimensions(self) -> int:
        """Numbers in a point."""
        return sum(self._sizes)

    def values(self, point: Tensor) -> dict[str, Tensor]:
        """The tensors at a point, shape (dimensions,), by their names in the state dict."""
        found = {}
        parts = torch.split(point, self._sizes)
        for gain, tensor, unit, part in zip(
            self._gains, self._tensors, self._units, parts, strict=True
        ):
            if gain.rows:
                found[gain.name] = tensor * (1 + part.view(-1, *[1] * (tensor.dim() - 1)))
            else:
                found[gain.name] = tensor + part.view_as(tensor) * unit
        return found

    @contextmanager
    def of_each(self, points: Tensor) -> Iterator[None]:
        """While it lasts, each recording of a batch runs at a point of its own.

        points: shape (recordings, dimensions). Rows of convolutions, and vectors of norms and
        projections: raises PruningError for anything else, and where a batch has another size.
        """
        device = next(self.network.parameters()).device
        parts = torch.split(points.to(device), self._sizes, dim=1)
        changes: dict[str, dict[str, Tensor]] = {}
        for gain, tensor, unit, part in zip(
            self._gains, self._tensors, self._units, parts, strict=True
        ):
            if not gain.rows and tensor.dim() > 1:
                raise PruningError(
                    f"{gain.name} has {tensor.dim()} dimensions: expected a vector, or its rows "
                    "alone, to differ from recording to recording"
                )
            name, _, parameter = gain.name.rpartition(".")
            changes.setdefault(name, {})[parameter] = part if gain.rows else part * unit.to(device)
        with ExitStack() as hooks:
            for name, change in changes.items():
                module = self.network.get_submodule(name)
                _check_kind(name, module, change)
                hook = partial(_with_change, name, change)
                hooks.callback(module.register_forward_hook(hook).remove)
            yield


def _check_kind(name: str, module: nn.Module, change: dict[str, Tensor]) -> None:
    norm = isinstance(module, NORMS)
    rows = isinstance(module, nn.Conv1d)
    shift = isinstance(module, nn.Linear) and "weight" not in change
    if not (norm or rows or shift):
        raise PruningError(
            f"{name}: expected a convolution, a norm or a bias to have gains of its own for each "
            f"recording, found {type(module).__name__}"
        )


def _with_change(
    name: str, change: dict[str, Tensor], module: Any, inputs: tuple[Tensor], output: Tensor
) -> Tensor:
    """What the module would put out for each recording with its parameters changed."""
    points = len(next(iter(change.values())))
    if len(output) != points:
        raise PruningError(
            f"{name} runs {len(output)} recordings, but there are points of {points}"
        )
    dim = -1 if isinstance(module, CHANNELS_FIRST) else 1
    changed = output
    if "weight" in change:
        changed = changed + _unscaled(module, inputs[0], output) * change["weight"].unsqueeze(dim)
    if "bias" in change:
        changed = changed + change["bias"].unsqueeze(dim)
    return changed


def _unscaled(module: Any, inputs: Tensor, output: Tensor) -> Tensor:
    """What a change of the weight is a factor of."""
    if isinstance(module, nn.GroupNorm):
        return group_norm(inputs, module.num_groups, eps=module.eps)
    if isinstance(module, nn.LayerNorm):
        return layer_norm(inputs, module.normalized_shape, eps=module.eps)
    return output if module.bias is None else output - module.bias.unsqueeze(-1)
