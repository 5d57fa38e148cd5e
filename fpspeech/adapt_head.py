"""The output layer of a CTC model fitted to the words a speaker keeps saying, then confirmed.

It is fitted to the speaker's own words in one half of the recordings (`head_fit`), a round at a
time. How many rounds are good the *other* half tells: by the loss of what the model as it was took
it for. Words found anew by the fitted model would not tell, since it writes surely what it has
learnt by heart. If the loss of no round is lower in more than `SURE` of the paired bootstrap draws,
nothing is changed; else it is fitted to all recordings, as many rounds. Nor is anything changed if
the model then collapses, or if fewer than `LEAST_AS_WRITTEN` of the words that it writes are own
words as they are: of somebody who is heard so badly, words are taken for others, and fitting to
that merges them. So it pays where words recur, such as digits, commands and names, and leaves alone
where they do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from torch import Tensor

from fpspeech.halves import halves
from fpspeech.listening import MOST_SECONDS, Interrupted, Listener, first_seconds
from fpspeech.models import SpeechModel
from fpspeech.normalize import Normalized
from fpspeech.output_layer import head_inputs, head_of, head_values
from fpspeech.pruning import PruningError
from fpspeech.pruning.head_fit import Head, fitted_heads
from fpspeech.pruning.own_words import (
    as_shares,
    as_written,
    expected_losses,
    fitted,
)
from fpspeech.pruning.search import SURE, confirmed
from fpspeech.signals import collapsed, hear

ROUNDS = 3
"""Of fitting, at most."""

MOST_STEPS = 2 * ROUNDS
"""Rounds in all: fitted to one half, then to all recordings."""

WHAT = "output layer"

LEAST_AS_WRITTEN = 0.7
"""Of the words that are written, the share that must be own words as they are: .88 of two people
whom fitting helped, .54 and less where it merged words (docs/results.md)."""


@dataclass(frozen=True)
class AdaptedHead:
    """What fitting the output layer came to.

    values: its weight and bias, by their names in the state dict; none where it was not confirmed.
    loss: of the other half, before and after: the mean of `expected_loss` over its windows.
    as_written: see `fpspeech.pruning.own_words.as_written`, before. probability: that the loss is
    lower after. rounds: of fitting, 0 where none was good or none was tried. reason: why nothing is
    changed, or None.
    """

    values: Mapping[str, Tensor] = field(repr=False)
    loss: tuple[float, float]
    as_written: float
    probability: float
    rounds: int
    reason: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            "adapted": self.reason is None,
            "loss_other_half": [round(each, 6) for each in self.loss],
            "as_written": round(self.as_written, 4),
            "probability_better": self.probability,
            "rounds": self.rounds,
            "reason": self.reason,
        }


def adapt_head(
    model: SpeechModel,
    windows: Iterable[Tensor],
    *,
    seed: int = 0,
    listener: Listener | None = None,
) -> AdaptedHead:
    """Fits the output layer to the speaker of these windows, float32 samples, shape (samples,).

    The model is left as it was. Raises PruningError for a model that is no CTC model and with fewer
    than two windows, Interrupted after `listener.stop()`.
    """
    spelling = model.spelling
    if spelling is None or model.head is None:
        raise PruningError(
            f"{model.source.id} is a {model.family} model, whose output layer cannot be adapted: "
            "expected a CTC model such as Wav2Vec2; leave --adapt-head away"
        )
    listener = listener or Listener()
    heard = first_seconds(windows, MOST_SECONDS, model.sampling_rate)
    recordings = head_inputs(model, heard, listener)
    searched, held_back = halves(recordings, "adapting the output layer")
    plain = head_of(model)

    posteriors = [plain.log_posteriors(each) for each in recordings]
    said, losses = fitted(posteriors, spelling)
    right = as_written(posteriors, said, spelling)
    meant, before = said[1::2], losses[1::2]
    after, rounds = before, 0
    tried = ROUNDS if right >= LEAST_AS_WRITTEN else 0
    heads = fitted_heads(searched, plain, spelling, tried)
    for number, head in enumerate(_reported(heads, listener, 0), start=1):
        losses = expected_losses([head.log_posteriors(x) for x in held_back], meant, spelling)
        if fmean(as_shares(losses, before)[0]) < fmean(as_shares(after, before)[0]):
            after, rounds = losses, number
    sure, probability = confirmed(*as_shares(after, before), wanted=SURE, seed=seed)
    values: dict[str, Tensor] = {}
    reason: str | None = "not confirmed on the other half"
    if not tried:
        reason = f"only {right:.0%} of the words it writes are words of the speaker"
    elif sure:
        heads = fitted_heads(recordings, plain, spelling, rounds)
        *_, head = _reported(heads, listener, tried)
        values = head_values(model, head)
        with Normalized(values).apply(model):
            tuned = hear(model, heard)
        reason = collapsed(tuned, hear(model, heard))
    listener.tuned(WHAT, MOST_STEPS, MOST_STEPS)
    return AdaptedHead(
        values=values if reason is None else {},
        loss=(fmean(before), fmean(after)),
        as_written=right,
        probability=probability,
        rounds=rounds,
        reason=reason,
    )


def _reported(heads: Iterator[Head], listener: Listener, done: int) -> Iterator[Head]:
    """The heads, each told as a step that is done; raises Interrupted where it is to stop.

    done: steps before. The last of all is told when everything is.
    """
    for step, head in enumerate(heads, start=done + 1):
        listener.tuned(WHAT, min(step, MOST_STEPS - 1), MOST_STEPS)
        if listener.stop():
            raise Interrupted(f"stopped while fitting the {WHAT}, which begins anew")
        yield head
