"""The front end tuned to a speaker without labels or derivatives, then confirmed.

Gains of the channels of the convolutions and of the norm behind them (`SpeechModel.gains`) descend,
by evolution strategies, on how unsure the model is of one half of the speaker's recordings, each of
which tries a direction of its own. What it comes to counts only if on the *other* half, which it
never heard, the model is surer too (in more than `SURE` of the paired bootstrap draws), the entropy
of its non-blank frames falls by `LEAST_FALL`, and it has not collapsed. Otherwise nothing is tuned.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fpspeech.listening import Interrupted, Listener, first_seconds
from fpspeech.models import SpeechModel
from fpspeech.normalize import Normalized
from fpspeech.pruning import Applied, PruningError
from fpspeech.pruning.evolution import Evolution, evolve
from fpspeech.pruning.gains import Gains
from fpspeech.pruning.search import SURE, confirmed
from fpspeech.signals import collapsed, hear, json_number

LEAST_FALL = 0.04
"""Share by which the entropy must fall. What descends grows surer of anything; of four development
voices the one that it made worse (13.7 to 18.0 % of the words wrong) had its entropy fall by 0.7 %,
the three that it helped by 8 to 28 %."""

MOST_SECONDS = 600.0
"""Audio that is kept in memory to evolve and to confirm on, in seconds."""

DRAWN_SECONDS = 10.0
"""Audio that a value of the objective is taken on, in seconds: at least, and windows are whole."""

BATCH = 16
CUT_SECONDS = 0.03
"""Windows that differ by no more run together, all cut to the shortest."""


@dataclass(frozen=True)
class EvolvedFrontEnd:
    """What evolving came to.

    values: the tuned tensors, by their names in the state dict; none where it was not confirmed.
    uncertainty, entropy: of the other half, before and after; see `SpeechModel.uncertainty` and
    `Heard.entropy`. probability: that the uncertainty is lower after. seconds: of audio that the
    descent listened to, repeats included. reason: why nothing is tuned, or None.
    """

    values: Mapping[str, Tensor] = field(repr=False)
    uncertainty: tuple[float, float]
    entropy: tuple[float, float]
    probability: float
    seconds: float
    reason: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            "evolved": self.reason is None,
            "uncertainty_other_half": [round(each, 6) for each in self.uncertainty],
            "entropy_other_half": [json_number(round(each, 6)) for each in self.entropy],
            "probability_surer": self.probability,
            "confidence_wanted": SURE,
            "seconds_listened": round(self.seconds, 1),
            "reason": self.reason,
        }


def evolve_front_end(
    model: SpeechModel,
    windows: Iterable[Tensor],
    settings: Evolution | None = None,
    *,
    seed: int = 0,
    listener: Listener | None = None,
) -> EvolvedFrontEnd:
    """Tunes the front end to the speaker of these windows, float32 samples, shape (samples,).

    Every other window is evolved on, the rest confirms. The model is left as it was.
    Raises PruningError for a model without `gains` and with fewer than two windows, Interrupted
    after `listener.stop()`.
    """
    if not model.gains:
        raise PruningError(
            f"{model.source.id} is a {model.family} model, whose front end cannot be evolved: "
            "there is no sign of how well it hears without a transcript. Expected a CTC model "
            "such as Wav2Vec2; leave --evolve away"
        )
    listener = listener or Listener()
    settings = settings or Evolution()
    both = first_seconds(windows, MOST_SECONDS, model.sampling_rate)
    if len(both) < 2:
        raise PruningError(
            "evolving the front end needs two windows of audio or more, one half to evolve on and "
            f"one to confirm, found {len(both)}: give more recordings, or cut a long one"
        )
    gains = Gains(model.network, model.gains)
    searched, held_back = both[::2], both[1::2]
    ours = _batches(model, searched)
    seconds = 0.0

    def in_force(point: Tensor) -> Applied:
        return Normalized(gains.values(point)).apply(model)

    def drawn(number: int) -> list[Tensor]:
        return _drawn(ours, model.sampling_rate, f"{seed}:{number}")

    def objective(points: Tensor, number: int) -> Tensor:
        nonlocal seconds
        batches = drawn(number)
        seconds += sum(batch.numel() for batch in batches) / model.sampling_rate
        found = []
        for batch, own in zip(batches, torch.split(points, [*map(len, batches)]), strict=True):
            with gains.of_each(own):
                found.append(model.uncertainty(list(batch)).double().cpu())
        return torch.cat(found)

    def stepped(step: int) -> None:
        listener.evolved(step, settings.steps)
        if listener.stop():
            raise Interrupted(
                f"stopped after step {step} of {settings.steps} of evolving the front end, which "
                "begins anew"
            )

    point = evolve(
        objective,
        gains.dimensions,
        settings,
        directions=lambda number: sum(map(len, drawn(number))),
        seed=seed,
        stepped=stepped,
    )
    plain = hear(model, held_back)
    with in_force(point):
        tuned = hear(model, held_back)
    before, after = plain.uncertainties, tuned.uncertainties
    sure, probability = confirmed(after, before, wanted=SURE, seed=seed)
    reason = collapsed(tuned, plain)
    if reason is None and not sure:
        reason = "not confirmed on the other half"
    if reason is None and not tuned.entropy <= (1 - LEAST_FALL) * plain.entropy:
        reason = f"the entropy of the other half does not fall by {LEAST_FALL:.0%}"
    return EvolvedFrontEnd(
        values=gains.values(point) if reason is None else {},
        uncertainty=(fmean(before), fmean(after)),
        entropy=(plain.entropy, tuned.entropy),
        probability=probability,
        seconds=seconds,
        reason=reason,
    )


def _batches(model: SpeechModel, windows: Sequence[Tensor]) -> list[Tensor]:
    """Windows of about the same length together, cut to the shortest, shape (windows, samples)."""
    batches: list[list[Tensor]] = []
    for window in sorted(windows, key=len):
        longest = len(batches[-1][0]) + CUT_SECONDS * model.sampling_rate if batches else 0
        if len(window) <= longest and len(batches[-1]) < BATCH:
            batches[-1].append(window[: len(batches[-1][0])])
        else:
            batches.append([window])
    return [torch.stack(batch) for batch in batches]


def _drawn(batches: Sequence[Tensor], sampling_rate: int, seed: str) -> list[Tensor]:
    """Some of the batches, the same for the same seed, with `DRAWN_SECONDS` of audio at least."""
    shuffled = random.Random(seed).sample(range(len(batches)), len(batches))
    return first_seconds((batches[n] for n in shuffled), DRAWN_SECONDS, sampling_rate)
