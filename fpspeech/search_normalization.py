"""Where and how strongly to normalise a speaker: searched without labels, then confirmed.

The search listens to one half of the speaker's recordings and minimises a sign of how well the
model hears (see `signals`), among candidates that have not collapsed: the entropy or, of a CTC
model, the uncertainty or the loss of the speaker's own words. What it finds counts only if on the
*other* half, which chose nothing, it lowers that too, in more of the paired bootstrap draws than
`CONFIDENCE` (entropy) or `SURE` (the others, which are less noisy). Otherwise nothing is
normalised. The moments are those of both halves: they are measured, not chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from fpspeech.generic import Generic
from fpspeech.listening import first_seconds
from fpspeech.models import SpeechModel
from fpspeech.normalize import Normalization, normalize
from fpspeech.pruning import PruningError
from fpspeech.pruning.search import (
    CONFIDENCE,
    SURE,
    Searched,
    confirmed,
    coordinate_search,
)
from fpspeech.signals import Heard, collapsed, hear, json_number

STRENGTHS = (1.0, 0.5, 0.0)
TOLERANCES = {"entropy": 0.04, "uncertainty": 0.01, "words": 0.1}
"""Share by which a choice must be better to be taken.

Of the entropy: on five synthetic development speakers, the one whom normalising clearly made worse
gained 2 to 3 %, two whom it left nearly as they were at most 1 %, the two whom it helped 4 to 7 %.
Of the uncertainty: of six development speakers, the four that took something got better by it, and
the two most like those of the training took nothing.
"""

WANTED = {"entropy": CONFIDENCE, "uncertainty": SURE, "words": SURE}

SEARCH_SECONDS = 120.0
"""Audio that is searched and confirmed on, in seconds: more is not listened to so often."""


@dataclass(frozen=True)
class SearchedNormalization:
    """What the search came to.

    normalization: what is to be used: what was found if it was confirmed, else none. found: what
    the search preferred. objective: "entropy", "uncertainty" or "words". probability: that what was
    found is better on the half that the search did not see. other_half: the objective there, of the
    model as it is and of what was found; NaN where there is no such half. reason: why nothing is
    normalised, or None.
    """

    normalization: Normalization
    found: Normalization
    searched: Searched[float]
    objective: str
    probability: float
    other_half: tuple[float, float]
    reason: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            "used": dict(self.normalization.strengths),
            "found": dict(self.found.strengths),
            "evaluations": self.searched.evaluations,
            "objective": self.objective,
            "searched_half": [
                json_number(self.searched.start_objective),
                json_number(self.searched.objective),
            ],
            "other_half": [json_number(each) for each in self.other_half],
            "probability_better": self.probability,
            "confidence_wanted": WANTED[self.objective],
            "reason": self.reason,
        }


def search_normalization(
    model: SpeechModel,
    windows: Iterable[Tensor],
    generic: Generic,
    *,
    budget: int = 24,
    full: bool = False,
    minimise: str = "entropy",
    seed: int = 0,
) -> SearchedNormalization:
    """Searches the strengths at the model's sites, one site after the other.

    windows: of the speaker, float32 samples; every other one is searched on, the rest confirms.
    budget: evaluations, each a pass over the searched windows and one over all for every site that
    is normalised. minimise: "entropy" or, of a CTC model, "uncertainty" or "words". The model is
    left as it was. Raises PruningError for uncertainty and words of others.
    """
    if minimise != "entropy" and model.spelling is None:
        raise PruningError(
            f"{model.source.id} is a {model.family} model, of which no {minimise} can be known: "
            "search for a lower entropy"
        )
    both = first_seconds(windows, SEARCH_SECONDS, model.sampling_rate)
    halves = (both[::2], both[1::2])
    if not halves[0] or not halves[1]:
        none = Normalization(full=full)
        searched = Searched[float]({}, math.nan, math.nan, ())
        why = "one window of audio leaves none to confirm on"
        nothing = (math.nan, math.nan)
        return SearchedNormalization(none, none, searched, minimise, 0.5, nothing, why)
    words = minimise == "words"
    dense = [hear(model, half, words=words) for half in halves]

    def heard(point: dict[str, float], half: int) -> Heard:
        normalization = Normalization(tuple(point.items()), full)
        with normalize(model, both, normalization, generic).apply(model):
            return hear(model, halves[half], words=words)

    def objective(point: dict[str, float]) -> float:
        found = heard(point, 0) if any(point.values()) else dense[0]
        return math.inf if collapsed(found, dense[0]) else _value(found, minimise)

    searched = coordinate_search(
        dict.fromkeys(model.sites, 0.0),
        dict.fromkeys(model.sites, STRENGTHS),
        objective,
        budget=budget,
        tolerance=TOLERANCES[minimise],
    )
    found = Normalization(tuple(searched.point.items()), full)
    plain = _value(dense[1], minimise)
    if not found.active:
        why = f"no site lowers the {minimise}"
        return SearchedNormalization(found, found, searched, minimise, 0.5, (plain, plain), why)
    other = heard(searched.point, 1)
    sure, probability = _confirmed(other, dense[1], minimise, seed)
    reason = collapsed(other, dense[1])
    if reason is None and not sure:
        reason = "not confirmed on the other half"
    return SearchedNormalization(
        normalization=found if reason is None else Normalization(full=full),
        found=found,
        searched=searched,
        objective=minimise,
        probability=probability,
        other_half=(plain, _value(other, minimise)),
        reason=reason,
    )


def _value(heard: Heard, objective: str) -> float:
    return heard.entropy if objective == "entropy" else fmean(_each(heard, objective))


def _each(heard: Heard, objective: str) -> Sequence[float]:
    """The objective of each window."""
    return heard.losses if objective == "words" else heard.uncertainties


def _confirmed(candidate: Heard, plain: Heard, objective: str, seed: int) -> tuple[bool, float]:
    wanted = WANTED[objective]
    if objective != "entropy":
        each, before = _each(candidate, objective), _each(plain, objective)
        return confirmed(each, before, wanted=wanted, seed=seed)
    positions = (candidate.informative, plain.informative)
    return confirmed(candidate.totals, plain.totals, positions=positions, wanted=wanted, seed=seed)
