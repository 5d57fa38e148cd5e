"""A few numbers that tune a network: gains of a weight's rows, and shifts of its vectors.

They fold into the tensors they belong to, so the architecture stays what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fpspeech.pruning.layers import PruningError


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
        self._gains = tuple(gains)
        self._tensors = [state[gain.name].detach().cpu().clone() for gain in gains]
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
        for gain, tensor, part in zip(self._gains, self._tensors, parts, strict=True):
            if gain.rows:
                found[gain.name] = tensor * (1 + part.view(-1, *[1] * (tensor.dim() - 1)))
            else:
                found[gain.name] = tensor + part.view_as(tensor) * tensor.abs().mean()
        return found
