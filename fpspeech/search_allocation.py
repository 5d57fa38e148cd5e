"""Which parts of a model to prune how much: searched without labels, then confirmed.

The search starts from OWL and lets one part of the model after the other lose more or less than
that says, at the same total. Each candidate is pruned and run over one half of the speaker's
recordings; what is minimised is the divergence of its posteriors from the dense model's, among
candidates that have not collapsed. What it finds counts only if on the *other* half, which chose
nothing, it is closer too, in more than `CONFIDENCE` of the paired bootstrap draws. Otherwise OWL
stays. Unlike `sensitivity`, which prunes each part alone, it sees the errors of all parts meet.

It can come close to the dense model, not ahead of it. How unsure a CTC model is could; as the
objective here it did not hold on the other half (docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fpspeech.allocate import highest
from fpspeech.halves import halves
from fpspeech.models import SpeechModel
from fpspeech.pruning import Applied, PrunableLayer
from fpspeech.pruning.allocation import Allocation, shifted
from fpspeech.pruning.search import CONFIDENCE, Searched, confirmed, coordinate_search
from fpspeech.signals import Reference, collapsed, json_number

SHIFTS = (-0.1, 0.1)
"""What a part loses more than the start says, before all are shifted to meet the total."""

SEARCH_SECONDS = 120.0
"""Audio that is searched and confirmed on, in seconds: more is not listened to so often."""


@dataclass(frozen=True)
class SearchedAllocation:
    """What the search came to.

    allocation: what is to be used. shifts: what the search preferred, by part. other_half:
    divergence from the dense model on the half that chose nothing, in nats a position, of the
    start and of what was found. probability: that the latter is the lower one. reason: why it
    stays with the start, or None.
    """

    allocation: Allocation = field(repr=False)
    shifts: Mapping[str, float]
    searched: Searched[float] = field(repr=False)
    other_half: tuple[float, float]
    probability: float
    reason: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            "searched": self.reason is None,
            "found": dict(self.shifts),
            "evaluations": self.searched.evaluations,
            "divergence_searched": [
                json_number(self.searched.start_objective),
                json_number(self.searched.objective),
            ],
            "divergence_other_half": [json_number(each) for each in self.other_half],
            "probability_closer": self.probability,
            "confidence_wanted": CONFIDENCE,
            "reason": self.reason,
        }


def search_allocation(
    model: SpeechModel,
    parts: Mapping[str, Sequence[PrunableLayer]],
    start: Allocation,
    sparsity: float,
    pruned: Callable[[Allocation], Applied],
    windows: Iterable[Tensor],
    *,
    budget: int = 24,
    seed: int = 0,
) -> SearchedAllocation:
    """Searches how much the parts lose, one after the other, from `start` on.

    parts: name -> its layers. pruned: puts the model pruned by an allocation in force until its
    context ends. windows: of the speaker, float32 samples; every other one is searched on, the
    rest confirms. budget: candidates that are pruned and heard, the start included.
    Raises PruningError where there are fewer than two windows.
    """
    ours, held_back = (
        Reference(model, half) for half in halves(list(windows), "searching an allocation")
    )
    wanted = {layer.name: layer.sparsity for layer in start.layers}
    layers = [layer for members in parts.values() for layer in members]
    part_of = {layer.name: part for part, members in parts.items() for layer in members}

    def at(point: Mapping[str, float]) -> Allocation:
        if not any(point.values()):
            return start
        moved = {name: share + point[part_of[name]] for name, share in wanted.items()}
        return shifted(layers, moved, sparsity, cap=highest(sparsity))

    def objective(point: dict[str, float]) -> float:
        with pruned(at(point)):
            heard, closeness = ours.compare(model)
        # The start counts however it fares: something has to be pruned.
        if any(point.values()) and collapsed(heard, ours.heard):
            return math.inf
        return closeness.divergence

    searched = coordinate_search(
        dict.fromkeys(parts, 0.0), dict.fromkeys(parts, SHIFTS), objective, budget=budget
    )
    shifts = {part: shift for part, shift in searched.point.items() if shift}
    with pruned(start):
        _, plain = held_back.compare(model)
    if not shifts:
        other = (plain.divergence, plain.divergence)
        return SearchedAllocation(start, {}, searched, other, 0.5, "no part gets closer to dense")
    with pruned(at(searched.point)):
        heard, found = held_back.compare(model)
    sure, probability = confirmed(
        found.totals, plain.totals, positions=(found.positions, plain.positions), seed=seed
    )
    reason = collapsed(heard, held_back.heard)
    if reason is None and not sure:
        reason = "not confirmed on the other half"
    return SearchedAllocation(
        allocation=at(searched.point) if reason is None else start,
        shifts=shifts,
        searched=searched,
        other_half=(plain.divergence, found.divergence),
        probability=probability,
        reason=reason,
    )
