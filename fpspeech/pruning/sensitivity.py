"""The budget spent where the outputs suffer least: measured costs -> the sparsity of each unit.

A unit is a layer or a part of the model. Its cost at a level is the divergence from the dense
model when this unit alone is pruned to that level: forward passes, no label, no gradient. What
is minimised is the sum of the units' costs, which leaves out that errors of several units meet;
so an allocation is a candidate to be measured, not a promise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise

import torch

from fpspeech.pruning.allocation import Allocation, allocated
from fpspeech.pruning.layers import PrunableLayer, PruningError

Costs = Mapping[str, Mapping[float, float]]
"""Unit -> level (sparsity of that unit alone) -> divergence from the dense model."""


def measure_costs(
    units: Iterable[str],
    levels: Sequence[float],
    prune: Callable[[str, float], AbstractContextManager[object]],
    divergence: Callable[[], float],
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, dict[float, float]]:
    """Prunes one unit at a time to every level above 0 and measures what becomes of the outputs.

    That takes (units) x (levels above 0) evaluations; at level 0 nothing is pruned, and the cost
    is 0. prune: puts a unit at a level in force until its context ends. divergence: of the
    model's outputs as they then are from the dense ones. progress: called with the evaluations
    done and all of them. Raises PruningError, naming unit and level, on a cost that is not finite.
    """
    units = tuple(units)
    above = sorted({level for level in levels if level > 0})
    evaluations = len(units) * len(above)
    costs: dict[str, dict[float, float]] = {unit: {0.0: 0.0} for unit in units}
    done = 0
    for unit in units:
        for level in above:
            with prune(unit, level), torch.inference_mode():
                cost = float(divergence())
            _check_cost(unit, level, cost)
            costs[unit][level] = cost
            done += 1
            progress(done, evaluations)
    return costs


def sensitivity(
    units: Mapping[str, Sequence[PrunableLayer]], costs: Costs, sparsity: float
) -> Allocation:
    """The sparsities whose costs sum up to the least; the layers of a unit all have its level.

    units: name -> its layers, every layer in one unit. costs, sparsity: see `cheapest_levels`.
    Raises PruningError where a layer is in two units, and as `cheapest_levels` does.
    """
    unit_of: dict[str, str] = {}
    for unit, layers in units.items():
        for layer in layers:
            if layer.name in unit_of:
                raise PruningError(
                    f"{layer.name} is in the units {unit_of[layer.name]!r} and {unit!r}: "
                    "expected every layer in one"
                )
            unit_of[layer.name] = unit
    sizes = {unit: sum(layer.size for layer in layers) for unit, layers in units.items()}
    levels = cheapest_levels(sizes, costs, sparsity)
    together = [layer for layers in units.values() for layer in layers]
    return allocated(together, lambda name: levels[unit_of[name]])


def cheapest_levels(sizes: Mapping[str, int], costs: Costs, sparsity: float) -> dict[str, float]:
    """The level of each unit with the least sum of costs that prunes `sparsity` of all weights.

    sizes: weights by unit. costs: by unit and level; level 0 costs 0 where it is not there, and
    the highest level of a unit is the most it can lose. Measured costs are noisy: first they are
    made to grow with the level (`isotonic`), then each unit gets their lower convex hull.

    A unit's cost between two levels is their mixture. Then this is a linear program, and going
    along the hulls by ascending cost a weight until the budget is spent solves it exactly (the
    Lagrangian's multiplier is the cost a weight where it stops): all units but one end on a
    measured level. Units with equal costs a weight go in the order of their names. More total
    sparsity never gives a unit a lower level.
    Raises PruningError on levels or costs out of range, on units without costs, and where the
    highest levels prune less than `sparsity`.
    """
    if not 0 <= sparsity < 1:
        raise PruningError(f"expected a total sparsity of 0 <= sparsity < 1, found {sparsity:g}")
    if sizes.keys() != costs.keys():
        odd = sorted(sizes.keys() ^ costs.keys())
        raise PruningError(f"expected a size and costs for every unit, found one of both for {odd}")
    if not sizes or min(sizes.values()) <= 0:
        raise PruningError(f"expected units with weights to prune, found sizes {dict(sizes)}")
    hulls = {unit: _hull(unit, by_level) for unit, by_level in costs.items()}
    total = sum(sizes.values())
    most = math.fsum(size * hulls[unit][-1][0] for unit, size in sizes.items())
    left = sparsity * total
    if left > most * (1 + 1e-9):  # rounding: 0.7 of every unit is 0.7 of all
        raise PruningError(
            f"a sparsity of {sparsity:.1%} was asked for, but the highest levels of all units "
            f"come to {most / total:.1%}: measure higher levels, or ask for less"
        )
    steps = sorted(
        (_slope(start, end) / size, unit, start[0], end[0])
        for unit, size in sizes.items()
        for start, end in pairwise(hulls[unit])
    )
    levels = dict.fromkeys(sizes, 0.0)
    for _, unit, level_before, level in steps:
        step = sizes[unit] * (level - level_before)
        if step > left:
            levels[unit] = level_before + left / sizes[unit]
            break
        levels[unit] = level
        left -= step
    return levels


def isotonic(values: Sequence[float]) -> list[float]:
    """The non-decreasing values nearest to these in squares, by pooling adjacent violators.

    Runs that decrease become their mean (Ayer et al. 1955).
    """
    pools: list[tuple[float, int]] = []  # (mean, how many values)
    for value in values:
        mean, count = float(value), 1
        while pools and pools[-1][0] > mean:
            before, more = pools.pop()
            mean = (before * more + mean * count) / (more + count)
            count += more
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def _hull(unit: str, by_level: Mapping[float, float]) -> list[tuple[float, float]]:
    """(level, cost) at the corners of the lower convex hull, from level 0 up."""
    for level, cost in by_level.items():
        _check_cost(unit, level, cost)
    levels = sorted({0.0, *by_level})
    costs = isotonic([by_level.get(level, 0.0) for level in levels])
    corners: list[tuple[float, float]] = []
    for point in zip(levels, costs, strict=True):
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) >= _slope(corners[-1], point):
            corners.pop()
        corners.append(point)
    return corners


def _slope(start: tuple[float, float], end: tuple[float, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])


def _check_cost(unit: str, level: float, cost: float) -> None:
    if not 0 <= level < 1:
        raise PruningError(f"{unit} has a cost at level {level:g}: expected 0 <= level < 1")
    if not math.isfinite(cost):
        raise PruningError(
            f"the cost of {unit} at level {level:g} is {cost:g}: expected a finite divergence; "
            "leave that level out, or measure with a divergence that is bounded"
        )
