"""Forward-only search: one coordinate at a time, a stated number of evaluations, then confirmed.

It knows nothing of what is searched: a point says what every coordinate is set to, and an
objective (lower is better) is measured with forward passes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from fpspeech.pruning.layers import PruningError

Choice = TypeVar("Choice")

Positions = tuple[Sequence[int], Sequence[int]]

DRAWS = 2000
CONFIDENCE = 0.5
"""Share of the bootstrap draws beyond which a candidate is confirmed: better as often as not."""

SURE = 0.95
"""The same where more is asked for."""


@dataclass(frozen=True)
class Step(Generic[Choice]):
    """One evaluation: the point that was tried, its objective, and whether it was taken."""

    point: tuple[tuple[str, Choice], ...]
    objective: float
    taken: bool


@dataclass(frozen=True)
class Searched(Generic[Choice]):
    """The best point that was found, its objective, that of the start, and all that was tried."""

    point: dict[str, Choice]
    objective: float
    start_objective: float
    steps: tuple[Step[Choice], ...]

    @property
    def evaluations(self) -> int:
        """How often the objective was measured."""
        return len(self.steps)


def coordinate_search(
    start: Mapping[str, Choice],
    choices: Mapping[str, Sequence[Choice]],
    objective: Callable[[dict[str, Choice]], float],
    *,
    budget: int,
    tolerance: float = 0.0,
) -> Searched[Choice]:
    """Sets one coordinate after the other to its best choice, again until nothing gets better.

    start: a choice for every coordinate. choices: the values that each is tried at. budget: the
    most evaluations, the start's included. tolerance: share of the objective by which a choice
    must be better to be taken. A point is never measured twice; infinite and NaN never win.
    Raises PruningError where the start lacks a coordinate, and for a budget below 1.
    """
    missing = [name for name in choices if name not in start]
    if missing:
        raise PruningError(f"the start of a search says nothing of {missing[0]!r}")
    if budget < 1:
        raise PruningError(f"expected a budget of 1 evaluation or more, found {budget}")
    known: dict[tuple[tuple[str, Choice], ...], float] = {}
    steps: list[Step[Choice]] = []

    def measured(point: dict[str, Choice], best: float) -> float | None:
        """The objective, or None when the budget is spent."""
        key = tuple(point.items())
        if key not in known:
            if len(known) >= budget:
                return None
            value = float(objective(dict(point)))
            known[key] = value if math.isfinite(value) else math.inf
            steps.append(Step(key, known[key], known[key] < best))
        return known[key]

    def to_beat(best: float) -> float:
        return best - tolerance * abs(best) if math.isfinite(best) else best

    point = dict(start)
    first = best = measured(point, math.inf) or 0.0
    improved = True
    while improved:
        improved = False
        for name, values in choices.items():
            for value in values:
                tried = {**point, name: value}
                found = measured(tried, to_beat(best))
                if found is None:
                    return Searched(dict(point), best, first, tuple(steps))
                if found < to_beat(best):
                    point, best, improved = tried, found, True
    return Searched(dict(point), best, first, tuple(steps))


def probability_lower(
    candidate: Sequence[float],
    plain: Sequence[float],
    *,
    positions: Positions | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> float:
    """Share of paired bootstrap draws in which the candidate's mean is the lower one.

    candidate, plain: the same quantity of the same items, such as the entropy of each window. A
    draw takes as many items as there are, with replacement; ties count half. positions: where the
    values are sums, over how many positions, for both; the means are then over positions.
    Raises PruningError where the lengths differ or are zero.
    """
    if len(candidate) != len(plain) or not candidate:
        raise PruningError(
            f"expected as many values of both, and some: found {len(candidate)} and {len(plain)}"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(candidate), (draws, len(candidate)), generator=generator)
    means = []
    for values, counts in zip((candidate, plain), positions or (None, None), strict=True):
        totals = torch.tensor(values, dtype=torch.float64)
        sizes = torch.ones_like(totals) if counts is None else torch.tensor(counts).double()
        # A draw without any position has no mean: it is worse than every other.
        total, size = totals[drawn].sum(1), sizes[drawn].sum(1)
        means.append(torch.where(size > 0, total / size.clamp_min(1), math.inf))
    one, other = means
    return float((one < other).double().mean() + 0.5 * (one == other).double().mean())


def confirmed(
    candidate: Sequence[float],
    plain: Sequence[float],
    *,
    positions: Positions | None = None,
    wanted: float = CONFIDENCE,
    seed: int = 0,
) -> tuple[bool, float]:
    """Whether a candidate that was chosen on some items is better on others, and how surely.

    wanted: see `CONFIDENCE` and `SURE`; the others as in `probability_lower`.
    """
    probability = probability_lower(candidate, plain, positions=positions, seed=seed)
    return probability > wanted, probability
