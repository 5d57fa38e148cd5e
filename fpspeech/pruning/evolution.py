"""Descent without derivatives: evolution strategies with antithetic pairs.

The gradient of the objective, smoothed by Gaussian noise of standard deviation σ, is estimated
from values alone (Salimans et al. 2017; Spall 1992 for the pairs): with ε of independent standard
normal numbers,

    ∇ E[f(x + σε)] = E[(f(x + σε) - f(x - σε)) / 2σ · ε]

Both values of a pair are taken on the same data, so that its chances cancel. Where a pass takes
several values, each of its own data (a batch of recordings), each goes in a direction of its own:
as many directions as recordings for the same passes. A step goes a set length along the running
mean of the estimates: only their direction counts, so the scale of the objective does not matter.
The lengths fall to zero in a straight line, so that little of the noise of the last is walked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fpspeech.pruning.layers import PruningError


@dataclass(frozen=True)
class Evolution:
    """How to descend.

    steps: taken. pairs: of passes for each, ahead and behind. spread: σ of the formula. length:
    root mean square of the first step over the coordinates. momentum: share of the former estimates
    in their running mean. Raises PruningError on values out of range.
    """

    steps: int = 24
    pairs: int = 40
    spread: float = 0.06
    length: float = 0.025
    momentum: float = 0.8

    def __post_init__(self) -> None:
        for name in ("steps", "pairs"):
            if getattr(self, name) < 1:
                raise PruningError(f"{name}: expected 1 or more, found {getattr(self, name)}")
        for name in ("spread", "length"):
            if not getattr(self, name) > 0:
                raise PruningError(f"{name}: expected more than 0, found {getattr(self, name):g}")
        if not 0 <= self.momentum < 1:
            raise PruningError(f"expected 0 <= momentum < 1, found {self.momentum:g}")


def evolve(
    objective: Callable[[Tensor, int], Tensor],
    dimensions: int,
    settings: Evolution | None = None,
    *,
    directions: Callable[[int], int] = lambda number: 1,
    seed: int = 0,
    stepped: Callable[[int, Tensor], None] = lambda step, point: None,
) -> Tensor:
    """Descends from the origin; returns the point it comes to, float32, shape (dimensions,).

    objective: (points of shape (values, dimensions), number of the pair) -> a value at each point,
    shape (values,); the number tells which data to take them on. directions: how many values a pair
    of that number takes at a time. A direction with a value that is not finite says nothing.
    stepped: called behind each step, with how many there were and the point; what it raises ends
    the descent. The same seed gives the same draws.
    """
    settings = settings or Evolution()
    generator = torch.Generator().manual_seed(seed)
    point = torch.zeros(dimensions)
    mean = torch.zeros(dimensions)
    for step in range(settings.steps):
        estimate = torch.zeros(dimensions)
        for pair in range(settings.pairs):
            number = step * settings.pairs + pair
            shape = (directions(number), dimensions)
            noise = settings.spread * torch.randn(shape, generator=generator)
            difference = objective(point + noise, number) - objective(point - noise, number)
            difference = difference.to(noise).masked_fill(~difference.isfinite(), 0)
            estimate += difference @ noise
        # Constant factors (2σ², the number of directions, the start of the mean) cancel below.
        mean = settings.momentum * mean + (1 - settings.momentum) * estimate
        norm = float(mean.norm())
        if norm > 0:
            length = settings.length * (1 - step / settings.steps)
            point = point - mean * (length * math.sqrt(dimensions) / norm)
        stepped(step + 1, point)
    return point
