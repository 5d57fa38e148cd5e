"""Where and how strongly to normalise a speaker: searched without labels, then confirmed.

The search listens to one half of the speaker's recordings and minimises the entropy of what the
model writes (see `signals`), among candidates that have not collapsed. What it finds counts only
if on the *other* half, which chose nothing, it lowers the entropy too, in more than `CONFIDENCE`
of the paired bootstrap draws. Otherwise nothing is normalised. The moments are those of both
halves: they are measured, not chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fpspeech.generic import Generic
from fpspeech.listening import first_seconds
from fpspeech.models import SpeechModel
from fpspeech.normalize import Normalization, normalize
from fpspeech.pruning.search import CONFIDENCE, Searched, confirmed, coordinate_search
from fpspeech.signals import Heard, collapsed, hear, json_number

STRENGTHS = (1.0, 0.5, 0.0)
TOLERANCE = 0.04
"""Share of the entropy by which a choice must be better to be taken.

On five synthetic development speakers: the one whom normalising clearly made worse gained 2 to 3 %,
two whom it left nearly as they were at most 1 %, the two whom it helped 4 to 7 %.
"""

SEARCH_SECONDS = 120.0
"""Audio that is searched and confirmed on, in seconds: more is not listened to so often."""


@dataclass(frozen=True)
class SearchedNormalization:
    """What the search came to.

    normalization: what is to be used: what was found if it was confirmed, else none. found: what
    the search preferred. probability: that it is better on the half that the search did not see.
    entropy, dense_entropy: of what was found, and of the model as it is, on that half, in nats;
    NaN where there is no such half. reason: why nothing is normalised, or None.
    """

    normalization: Normalization
    found: Normalization
    searched: Searched[float]
    probability: float
    entropy: float
    dense_entropy: float
    reason: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            "used": dict(self.normalization.strengths),
            "found": dict(self.found.strengths),
            "evaluations": self.searched.evaluations,
            "entropy_searched": [
                json_number(self.searched.start_objective),
                json_number(self.searched.objective),
            ],
            "entropy_other_half": [json_number(self.dense_entropy), json_number(self.entropy)],
            "probability_better": self.probability,
            "confidence_wanted": CONFIDENCE,
            "reason": self.reason,
        }


def search_normalization(
    model: SpeechModel,
    windows: Iterable[Tensor],
    generic: Generic,
    *,
    budget: int = 24,
    full: bool = False,
    seed: int = 0,
) -> SearchedNormalization:
    """Searches the strengths at the model's sites, one site after the other.

    windows: of the speaker, float32 samples; every other one is searched on, the rest confirms.
    budget: evaluations, each a pass over the searched windows for the entropy and one for every
    site that is normalised. The model is left as it was.
    """
    both = first_seconds(windows, SEARCH_SECONDS, model.sampling_rate)
    halves = (both[::2], both[1::2])
    if not halves[0] or not halves[1]:
        none = Normalization(full=full)
        searched = Searched[float]({}, math.nan, math.nan, ())
        why = "one window of audio leaves none to confirm on"
        return SearchedNormalization(none, none, searched, 0.5, math.nan, math.nan, why)
    dense = [hear(model, half) for half in halves]

    def heard(point: dict[str, float], half: int) -> Heard:
        normalization = Normalization(tuple(point.items()), full)
        with normalize(model, both, normalization, generic).apply(model):
            return hear(model, halves[half])

    def objective(point: dict[str, float]) -> float:
        found = heard(point, 0) if any(point.values()) else dense[0]
        return math.inf if collapsed(found, dense[0]) else found.entropy

    start = dict.fromkeys(model.sites, 0.0)
    searched = coordinate_search(
        start,
        dict.fromkeys(model.sites, STRENGTHS),
        objective,
        budget=budget,
        tolerance=TOLERANCE,
    )
    point = searched.point
    found = Normalization(tuple(point.items()), full)
    if not found.active:
        entropy = dense[1].entropy
        why = "no site lowers the entropy"
        return SearchedNormalization(found, found, searched, 0.5, entropy, entropy, why)
    other = heard(point, 1)
    sure, probability = confirmed(
        other.totals,
        dense[1].totals,
        positions=(other.informative, dense[1].informative),
        seed=seed,
    )
    reason = collapsed(other, dense[1])
    if reason is None and not sure:
        reason = "not confirmed on the other half"
    return SearchedNormalization(
        normalization=found if reason is None else Normalization(full=full),
        found=found,
        searched=searched,
        probability=probability,
        entropy=other.entropy,
        dense_entropy=dense[1].entropy,
        reason=reason,
    )
