"""The front end tuned to a speaker without labels or derivatives, then confirmed.

Gains of the channels of the convolutions and of the norm behind them (`SpeechModel.gains`) descend,
by evolution strategies, on how badly the model fits the speaker's own words (`own_words`) in one
half of the recordings, each of which tries a direction of its own. The words are found in what the
model writes, and found anew as it hears better. What it comes to counts only if the *other* half,
which it never heard, is fitted better too, and the model has not collapsed. Better is: in more than
`SURE` of the paired bootstrap draws of the losses, as shares of what they were; or, where words
recur too little for that, in more than `CONFIDENCE` of them, if the model is surer in more than
`SURE` and the entropy of its non-blank frames falls by `LEAST_FALL`. Otherwise nothing is tuned.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fpspeech.halves import halves
from fpspeech.listening import MOST_SECONDS, Interrupted, Listener, first_seconds
from fpspeech.models import SpeechModel
from fpspeech.normalize import Normalized
from fpspeech.pruning import Applied, PruningError
from fpspeech.pruning.evolution import Evolution, evolve
from fpspeech.pruning.gains import Gains
from fpspeech.pruning.own_words import Places, Spelling, as_shares, expected_loss, fitted
from fpspeech.pruning.search import CONFIDENCE, SURE, confirmed
from fpspeech.pruning.uncertainty import uncertainty
from fpspeech.signals import collapsed, hear, json_number

UNCERTAINTY = 2.0
"""Weight of how unsure the model is, beside the loss of the speaker's own words. Alone it is no
guide: it makes some people's words surer and wrong (docs/results.md)."""

LEAST_FALL = 0.04
"""Share by which the entropy must fall where it confirms."""

DRAWN_SECONDS = 10.0
"""Audio that a value of the objective is taken on, in seconds: at least, and windows are whole."""

REHEARD_STEPS = 4
"""Steps after which what the speaker says is found anew, by the model as it is then."""

BATCH = 16
CUT_SECONDS = 0.03
"""Windows that differ by no more run together, all cut to the shortest."""


@dataclass(frozen=True)
class EvolvedFrontEnd:
    """What evolving came to.

    values: the tuned tensors, by their names in the state dict; none where it was not confirmed.
    loss, entropy: of the other half, before and after: the mean of `expected_loss` over its
    windows, and `Heard.entropy`. probability: that the loss is lower after. seconds: of audio that
    the descent listened to, repeats included. reason: why nothing is tuned, or None.
    """

    values: Mapping[str, Tensor] = field(repr=False)
    loss: tuple[float, float]
    entropy: tuple[float, float]
    probability: float
    seconds: float
    reason: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            "evolved": self.reason is None,
            "loss_other_half": [round(each, 6) for each in self.loss],
            "entropy_other_half": [json_number(round(each, 6)) for each in self.entropy],
            "probability_better": self.probability,
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
    heard = first_seconds(windows, MOST_SECONDS, model.sampling_rate)
    searched, held_back = halves(heard, "evolving the front end")
    gains = Gains(model.network, model.gains)
    ours = _batches(model, searched)
    spelling = model.spelling
    assert spelling is not None  # a model with gains is a CTC model
    seconds = 0.0

    said = _listened(model, ours, spelling)

    def in_force(point: Tensor) -> Applied:
        return Normalized(gains.values(point)).apply(model)

    @lru_cache(maxsize=1)
    def drawn(number: int) -> list[Batch]:
        return _drawn(ours, model.sampling_rate, f"{seed}:{number}")

    def objective(points: Tensor, number: int) -> Tensor:
        nonlocal seconds
        batches = drawn(number)
        seconds += sum(batch.windows.numel() for batch in batches) / model.sampling_rate
        found = []
        for batch, own in zip(
            batches, torch.split(points, [len(each.numbers) for each in batches]), strict=True
        ):
            with gains.of_each(own):
                answers = model.log_posteriors(list(batch.windows))
            found.append(said.misfit(answers, batch.numbers).double())
        return torch.cat(found)

    def stepped(step: int, point: Tensor) -> None:
        nonlocal said
        listener.tuned("front end", step, settings.steps)
        if listener.stop():
            raise Interrupted(
                f"stopped after step {step} of {settings.steps} of evolving the front end, which "
                "begins anew"
            )
        if step % REHEARD_STEPS == 0 and step < settings.steps:
            with in_force(point):
                said = _listened(model, ours, spelling)

    point = evolve(
        objective,
        gains.dimensions,
        settings,
        directions=lambda number: sum(len(each.numbers) for each in drawn(number)),
        seed=seed,
        stepped=stepped,
    )
    plain = hear(model, held_back, words=True)
    with in_force(point):
        tuned = hear(model, held_back, words=True)
    before, after = plain.losses, tuned.losses
    sure, probability = confirmed(*as_shares(after, before), wanted=SURE, seed=seed)
    surer, _ = confirmed(tuned.uncertainties, plain.uncertainties, wanted=SURE, seed=seed)
    surer = surer and tuned.entropy <= (1 - LEAST_FALL) * plain.entropy
    reason = collapsed(tuned, plain)
    if reason is None and not (sure or (surer and probability > CONFIDENCE)):
        reason = "not confirmed on the other half"
    return EvolvedFrontEnd(
        values=gains.values(point) if reason is None else {},
        loss=(fmean(before), fmean(after)),
        entropy=(plain.entropy, tuned.entropy),
        probability=probability,
        seconds=seconds,
        reason=reason,
    )


@dataclass(frozen=True)
class Said:
    """What the windows were taken for, and how badly each was fitted then, by their numbers.

    recurring: the share of the words that were not the first of their kind.
    """

    places: Mapping[int, Places]
    losses: Mapping[int, float]
    recurring: float
    spelling: Spelling

    def misfit(self, log_posteriors: Tensor, numbers: Sequence[int]) -> Tensor:
        """What is to be lowered, for windows of one length, shape (windows,).

        The loss of each, as a share of what it and the mean window had, so that no few windows
        rule, the more of it the more its words recur; and, as far as `UNCERTAINTY` says, how unsure
        the model is of it, which is less noisy.
        """
        loss = expected_loss(log_posteriors, [self.places[n] for n in numbers], self.spelling)
        usual = fmean(self.losses.values())
        scale = torch.tensor([self.losses[n] + usual for n in numbers])
        unsure = uncertainty(log_posteriors, self.spelling.blank).cpu()
        share = loss / scale.clamp_min(torch.finfo().tiny)
        return self.recurring**2 * share + UNCERTAINTY * unsure


def _listened(model: SpeechModel, batches: Sequence[Batch], spelling: Spelling) -> Said:
    """What the model as it is now takes the windows for."""
    numbers = [number for batch in batches for number in batch.numbers]
    heard = [each for batch in batches for each in model.log_posteriors(list(batch.windows))]
    places, losses = fitted(heard, spelling)
    n_words = sum(each.count for each in places)
    kinds = {word for each in places for word in each.words}
    return Said(
        dict(zip(numbers, places, strict=True)),
        dict(zip(numbers, losses, strict=True)),
        1 - len(kinds) / max(n_words, len(kinds)),
        spelling,
    )


@dataclass(frozen=True)
class Batch:
    """Windows of about the same length, cut to the shortest.

    windows: float32 samples, shape (windows, samples). numbers: which windows they are.
    """

    windows: Tensor
    numbers: tuple[int, ...]


def _batches(model: SpeechModel, windows: Sequence[Tensor]) -> list[Batch]:
    batches: list[list[int]] = []
    for number in sorted(range(len(windows)), key=lambda each: len(windows[each])):
        longest = CUT_SECONDS * model.sampling_rate
        longest += len(windows[batches[-1][0]]) if batches else 0
        if batches and len(batches[-1]) < BATCH and len(windows[number]) <= longest:
            batches[-1].append(number)
        else:
            batches.append([number])
    return [
        Batch(
            torch.stack([windows[number][: len(windows[batch[0]])] for number in batch]),
            tuple(batch),
        )
        for batch in batches
    ]


def _drawn(batches: Sequence[Batch], sampling_rate: int, seed: str) -> list[Batch]:
    """Some of the batches, the same for the same seed, with `DRAWN_SECONDS` of audio at least."""
    shuffled = random.Random(seed).sample(range(len(batches)), len(batches))
    windows = (batches[number].windows for number in shuffled)
    enough = len(first_seconds(windows, DRAWN_SECONDS, sampling_rate))
    return [batches[number] for number in shuffled[:enough]]
