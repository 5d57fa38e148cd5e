"""What unlabeled audio says about a model: signs of better and worse hearing, without a transcript.

What each can tell, and what not:

- entropy (of non-blank CTC frames, or of the tokens that Whisper wrote): low when the model is
  sure. It ranks candidates that hear, also beyond the dense model; it is fooled by a model that
  writes nothing, or the same sure nonsense again and again, so it counts only behind the guard.
- uncertainty (CTC models, see `fpspeech.pruning.uncertainty`): that entropy at a temperature, and
  how much classes are confused. Smoother, so that it ranks candidates that are nearly alike; it is
  fooled in the same ways.
- loss of the speaker's own words (CTC models, see `fpspeech.pruning.own_words`): how badly what is
  heard fits the words that the model keeps writing for this speaker. Of what was tried it alone
  told who is harmed by growing surer (docs/results.md); it needs words that recur.
- log-probability of what was written, per position: much the same, and it sees blank frames too.
- length of the text, compression ratio (within windows and of all) and outputs cut at the cap:
  the guard. They tell a collapse to silence, to a loop or to one text, nothing finer.
- divergence of posteriors from the dense model (KL), and agreement of the transcripts with the
  dense model's: how close a pruned model is to the dense one. Smooth (KL) and readable
  (agreement), but the dense model's mistakes count as truth, so neither can show an improvement.
- consistency: agreement of transcripts of the same audio as it is and slightly changed (speed,
  noise). It needs no dense model, and a model that always writes the same has it too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import jiwer
import torch
import torchaudio.functional
from torch import Tensor

from fpspeech.evaluation.hallucination import compression_ratio
from fpspeech.models import SpeechModel
from fpspeech.models.speech_model import Hypothesis
from fpspeech.pruning.divergence import Divergence, kullback_leibler
from fpspeech.pruning.own_words import fitted

SHORTEST, LONGEST = 0.8, 1.25
"""Share of the dense text's characters that a candidate's may have, at least and at most."""

MOST_REPETITIVE = 1.25
"""How many times as compressible as in the dense text a candidate's windows may be, each alone."""

MOST_ALIKE = 2.5
"""How many times as compressible the text of all windows together may be. Who hears better may well
write fewer different words: digits spelt right took a development speaker from 5.5 to 8.0, but one
and the same digit for every window is at 30."""

SPEED = 1.05
NOISE_DECIBELS = 30.0  # speech to noise


@dataclass(frozen=True)
class Heard:
    """What a model wrote for some windows, and how sure it was of each.

    hypotheses: a window each, in the same order for every model, so that two can be compared in
    pairs. losses: of each window in words that were found in them all, see
    `fpspeech.pruning.own_words`; none where they were not asked for.
    """

    hypotheses: tuple[Hypothesis, ...]
    losses: tuple[float, ...] = ()

    @property
    def totals(self) -> tuple[float, ...]:
        """Entropy of each window, summed over its informative positions, in nats."""
        return tuple(each.entropy for each in self.hypotheses)

    @property
    def informative(self) -> tuple[int, ...]:
        """Informative positions of each window."""
        return tuple(each.informative for each in self.hypotheses)

    @property
    def entropy(self) -> float:
        """Nats per informative position of all windows together; infinite where there is none."""
        informative = sum(self.informative)
        return sum(self.totals) / informative if informative else float("inf")

    @property
    def log_probability(self) -> float:
        """Natural logarithm per position of what was written."""
        positions = sum(len(each.tokens) for each in self.hypotheses)
        return sum(each.log_probability for each in self.hypotheses) / max(1, positions)

    @property
    def uncertainties(self) -> tuple[float, ...]:
        """How unsure the model was of each window, for a model of which that is known."""
        found = tuple(each.uncertainty for each in self.hypotheses if each.uncertainty is not None)
        assert len(found) == len(self.hypotheses)
        return found

    @property
    def text(self) -> str:
        """All that was written, a line a window."""
        return "\n".join(each.text for each in self.hypotheses)

    @property
    def compression_ratio(self) -> float:
        """That of all that was written, see `compression_ratio`."""
        return compression_ratio(self.text)

    @property
    def repetition(self) -> float:
        """That of the windows, each compressed alone: a loop of the decoder is inside of one."""
        written = [each.text for each in self.hypotheses if each.text]
        sizes = [len(text.encode()) for text in written]
        alone = [size / compression_ratio(text) for size, text in zip(sizes, written, strict=True)]
        return sum(sizes) / sum(alone) if written else 0.0

    @property
    def at_cap(self) -> int:
        """Windows whose output was cut at the cap on new tokens."""
        return sum(each.at_cap for each in self.hypotheses)


def json_number(value: float) -> float | None:
    """The value for a report, None where it is not finite: JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else None


def hear(model: SpeechModel, windows: Iterable[Tensor], *, words: bool = False) -> Heard:
    """What the model as it is now writes for windows of float32 samples, shape (samples,).

    words: whether to find the speaker's own words, of a CTC model.
    """
    hypotheses, posteriors = [], []
    for window in windows:
        found = model.hypothesis(window)
        # Posteriors are dropped where they can be: those of an hour would not fit.
        hypotheses.append(replace(found, log_posteriors=None))
        if words and found.log_posteriors is not None:
            posteriors.append(found.log_posteriors)
    losses = fitted(posteriors, model.spelling)[1] if words and model.spelling is not None else []
    return Heard(tuple(hypotheses), tuple(losses))


def collapsed(candidate: Heard, dense: Heard) -> str | None:
    """Why a candidate is not to be trusted however sure it is of itself; None where it is.

    A candidate must write about as much as the dense model, not be more repetitive, and not run
    into the cap on new tokens more often.
    """
    letters, others = len(candidate.text.strip()), len(dense.text.strip())
    if letters < SHORTEST * others:
        return f"it writes {letters} characters where the dense model writes {others}"
    if letters > LONGEST * max(1, others):
        return f"it writes {letters} characters where the dense model writes {others}"
    if candidate.repetition > MOST_REPETITIVE * dense.repetition:
        return "it repeats itself more than the dense model does"
    if candidate.compression_ratio > MOST_ALIKE * dense.compression_ratio:
        return "it writes much the same for every window"
    if candidate.at_cap > dense.at_cap:
        return "more of its outputs are cut at the cap on new tokens"
    return None


@dataclass(frozen=True)
class Closeness:
    """How close a pruned model is to the dense one on the same audio.

    totals, positions: KL(dense ‖ pruned) in nats, summed over the positions of each window.
    agreement: share of the dense transcript's words that the other has too: 1 - WER against it.
    """

    totals: tuple[float, ...]
    positions: tuple[int, ...]
    agreement: float

    @property
    def divergence(self) -> float:
        """Nats a position of all windows together."""
        return sum(self.totals) / max(1, sum(self.positions))


class Reference:
    """The dense model's answer to some windows, to measure others against.

    Its posteriors are kept in memory, as they are: meant for a minute or two of audio.
    windows: float32 samples, shape (samples,).
    """

    def __init__(self, model: SpeechModel, windows: Iterable[Tensor]):
        self._windows = tuple(windows)
        hypotheses = [model.hypothesis(window) for window in self._windows]
        self._tokens = [each.tokens for each in hypotheses]
        self._posteriors = [
            model.hypothesis(window, each.tokens).log_posteriors
            if each.log_posteriors is None
            else each.log_posteriors
            for window, each in zip(self._windows, hypotheses, strict=True)
        ]
        self.heard = Heard(tuple(replace(each, log_posteriors=None) for each in hypotheses))

    def compare(self, model: SpeechModel) -> tuple[Heard, Closeness]:
        """What the model as it is now writes for the same windows, and how close it is."""
        divergences: list[Divergence] = []
        hypotheses = []
        for window, tokens, dense in zip(
            self._windows, self._tokens, self._posteriors, strict=True
        ):
            found = model.hypothesis(window, tokens)
            assert dense is not None
            assert found.log_posteriors is not None  # they were asked for
            divergences.append(kullback_leibler(dense, found.log_posteriors))
            hypotheses.append(replace(found, log_posteriors=None))
        heard = Heard(tuple(hypotheses))
        return heard, Closeness(
            totals=tuple(each.total for each in divergences),
            positions=tuple(each.positions for each in divergences),
            agreement=agreement(self.heard, heard),
        )


def agreement(dense: Heard, other: Heard) -> float:
    """1 - WER of the other transcripts against the dense ones, over all windows; at most 1.

    Where the dense model wrote nothing at all it is 1 if the other did not either, else 0.
    """
    pairs = [
        (one.text, two.text)
        for one, two in zip(dense.hypotheses, other.hypotheses, strict=True)
        if one.text.strip()
    ]
    if not pairs:
        return float(not other.text.strip())
    return 1 - jiwer.wer([one for one, _ in pairs], [two for _, two in pairs])


def consistency(
    model: SpeechModel, windows: Sequence[Tensor], seed: int = 0, *, plain: Heard | None = None
) -> float:
    """Agreement of what the model writes for windows and for the same, faster and with noise.

    The speed grows by `SPEED`, and white noise lies `NOISE_DECIBELS` under the speech. plain: what
    it writes for the windows as they are, where that was heard before.
    """
    generator = torch.Generator().manual_seed(seed)
    if plain is None:
        plain = hear(model, windows)
    changed = hear(model, (_changed(window, model, generator) for window in windows))
    return agreement(plain, changed)


def _changed(window: Tensor, model: SpeechModel, generator: torch.Generator) -> Tensor:
    rate = model.sampling_rate
    faster = torchaudio.functional.resample(window, round(rate * SPEED), rate)
    noise = torch.randn(faster.shape, generator=generator)
    level = faster.square().mean().sqrt() * 10 ** (-NOISE_DECIBELS / 20)
    changed: Tensor = faster + level * noise
    return changed
