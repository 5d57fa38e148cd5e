"""How far another model's posteriors are from the dense model's, without any label.

Sums are float64 over positions (frames, or tokens), in nats. The two models must have seen the
same input; logits and log-probabilities give the same, since both are normalised first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fpspeech.pruning.layers import PruningError

VALUES = 1 << 22  # numbers of a tensor in float64 at a time: 32 MiB


@dataclass(frozen=True)
class Divergence:
    """A divergence summed over positions; `+` joins the sums of two streams.

    total: nats. positions: frames or tokens.
    """

    total: float = 0.0
    positions: int = 0

    @property
    def mean(self) -> float:
        """Nats a position; raises PruningError where there was no position."""
        if not self.positions:
            raise PruningError("a divergence over no position: expected posteriors of some audio")
        return self.total / self.positions

    def __add__(self, other: Divergence) -> Divergence:
        return Divergence(self.total + other.total, self.positions + other.positions)


def kullback_leibler(dense: Tensor, other: Tensor) -> Divergence:
    """Σ over positions of KL(p ‖ q) = Σ_k p_k·log(p_k/q_k), p the dense posteriors, q the other's.

    dense, other: logits or log-probabilities, shape (..., classes). Infinite where `other` rules
    out a class that `dense` does not. Raises PruningError on different shapes and on NaN.
    """
    if dense.shape != other.shape or not dense.dim():
        raise PruningError(
            f"posteriors of shape {tuple(dense.shape)} and {tuple(other.shape)}: expected the "
            "same (..., classes) of both models, over the same input"
        )
    rows = dense.reshape(-1, dense.shape[-1])
    others = other.reshape(-1, other.shape[-1])
    piece = max(1, VALUES // max(1, rows.shape[1]))
    total = 0.0
    for some, same in zip(torch.split(rows, piece), torch.split(others, piece), strict=True):
        p, q = (each.cpu().double().log_softmax(-1) for each in (some, same))
        # 0·log 0 is 0: a class that both rule out gives -inf - -inf otherwise.
        total += float(torch.where(p == -math.inf, 0.0, p.exp() * (p - q)).sum())
    if math.isnan(total):
        raise PruningError("posteriors that are NaN: check the audio and the pruned weights")
    return Divergence(total, rows.shape[0])
