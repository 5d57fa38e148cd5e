"""The output layer refitted, behind pruned layers, to what the dense model says.

Pruned layers hand the output layer other inputs than it was made for. With p_t the posteriors of
the dense model in frame t, and x_t what the pruned layers hand over there (and a 1, for the bias),
the refitted layer W lowers

    D(W) = Σ_t c_t KL(p_t || softmax(W x_t))

It is the distillation of Hinton, Vinyals and Dean (2015) of the last layer alone: convex, its
gradient G = Σ_t c_t (softmax(W x_t) - p_t) x_tᵀ needs no propagation, and nothing but the dense
model's own answers is asked for. c_t: the frames in which the dense model writes nothing count as
much, together, as those in which it writes; there are more of them, and they are easy.

The second derivative is nowhere more than ½ (I - 11ᵀ/K) ⊗ Σ_t c_t x_t x_tᵀ (Böhning 1992,
"Multinomial logistic regression algorithm"), so each step

    W <- W - 2 G (Σ_t c_t x_t x_tᵀ + λ I)⁻¹

lowers D, without a length of step to choose. There are `STEPS` of them from the old weights on, and
λ is a share of the mean of the diagonal: more steps, or less of λ, learn the recordings by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fpspeech.pruning.head_fit import Head

STEPS = 25

RIDGE = 0.1
"""λ, as a share of the mean of the diagonal it is added to."""

SMALLEST = -200.0
"""Log-posteriors of less count as this, since nothing times infinity is no number."""


@dataclass(frozen=True)
class Refit:
    """What refitting came to: the new layer, and D before and after, in nats a frame."""

    head: Head
    divergence: tuple[float, float]


def refit(
    inputs: Sequence[Tensor],
    log_posteriors: Sequence[Tensor],
    head: Head,
    blank: int | None = None,
) -> Refit:
    """The layer that says, from these inputs, what the dense model says; see this module.

    inputs: of the layer behind pruned layers, each of shape (frames, features), of one recording.
    log_posteriors: of the dense model, each of shape (frames, symbols). blank: the symbol that
    writes nothing; where it is None, all frames count alike.
    """
    x = torch.cat(list(inputs))
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    wanted = torch.cat(list(log_posteriors))
    p, c = wanted.exp(), _shares(wanted, blank).unsqueeze(1)
    second = x.T @ (c * x)
    second.diagonal().add_(RIDGE * second.diagonal().mean())
    factor = torch.linalg.cholesky(second)

    def divergence(said: Tensor) -> float:
        return float((c * p * (wanted.clamp_min(SMALLEST) - said)).sum())

    weight = head.point
    before = divergence(head.log_posteriors(x[:, :-1]))
    for _ in range(STEPS):
        gradient = (c * ((x @ weight.T).softmax(-1) - p)).T @ x
        weight = weight - 2 * torch.cholesky_solve(gradient.T, factor).T
    new = Head.of_point(weight)
    return Refit(new, (before, divergence(new.log_posteriors(x[:, :-1]))))


def _shares(log_posteriors: Tensor, blank: int | None) -> Tensor:
    """c_t of the formula, shape (frames,); they add up to 1."""
    frames = len(log_posteriors)
    if blank is not None:
        writes = log_posteriors.argmax(-1).ne(blank)
        some = int(writes.sum())
        if 0 < some < frames:
            return writes * (0.5 / some) + ~writes * (0.5 / (frames - some))
    return torch.full((frames,), 1 / frames)
