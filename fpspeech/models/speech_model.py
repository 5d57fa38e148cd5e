"""What every speech model family offers; one adapter a family implements it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fpspeech.models.pretrained import PretrainedModel
from fpspeech.pruning import Replay, Site
from fpspeech.pruning.gains import Gain
from fpspeech.pruning.own_words import Spelling
from fpspeech.pruning.statistics import Valid


class Counter(Protocol):
    """What counts while a model runs: an `Observer` or a `FeatureObserver`."""

    def counting(self, valid: Valid | None = None) -> AbstractContextManager[None]:
        """Counts every forward pass inside the block; see `Observer.counting`."""


@dataclass(frozen=True)
class Transcript:
    """What a model heard in one recording.

    at_cap: windows whose output was cut at the cap on new tokens, a sign of repetition.
    """

    text: str
    at_cap: int = 0


@dataclass(frozen=True)
class Hypothesis:
    """What a model wrote for one window, and how sure it was of it; nothing here needs a label.

    tokens: the decision at every position: symbols of the best path (frames, CTC), or the tokens
    that were written (Whisper). log_probability: the sum of their natural logarithms. entropy: of
    the posteriors, summed over the `informative` positions, in nats; blank frames of CTC are not
    informative. log_posteriors: natural logarithms, shape (positions, vocabulary), along the
    tokens that were asked for; None where none were asked for and the model writes step by step.
    at_cap: the output was cut at the cap on new tokens. uncertainty: of a CTC model, see
    `fpspeech.pruning.uncertainty`; None of others.
    """

    text: str
    tokens: tuple[int, ...]
    log_probability: float
    entropy: float
    informative: int
    log_posteriors: Tensor | None = None
    at_cap: bool = False
    uncertainty: float | None = None


class SpeechModel(PretrainedModel, Protocol):
    """A pretrained recogniser as the rest of the toolkit sees it."""

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the audio it takes."""

    @property
    def window_seconds(self) -> float:
        """The longest piece of audio it takes at once."""

    @property
    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        """Early places whose features can be normalised, by name, in the order they run."""

    @property
    def gains(self) -> tuple[Gain, ...]:
        """Tensors of the front end that can be tuned to a speaker; none where it is not known."""

    @property
    def spelling(self) -> Spelling | None:
        """What are no letters of a CTC model; None for others, which have no `gains`."""

    @property
    def head(self) -> str | None:
        """Name of the output layer of a CTC model, whose input are frames; None for others."""

    def log_posteriors(self, windows: Sequence[Tensor]) -> Tensor:
        """Those of a CTC model for windows of one length, shape (windows, frames, symbols).

        Raises ModelError for others.
        """

    def observe(self, windows: Sequence[Tensor], observer: Counter) -> None:
        """Runs the model over windows of float32 samples while `observer` counts, each once."""

    def listen(self, windows: Sequence[Tensor], counter: Counter) -> None:
        """Runs what hears, up to the last site at least, while `counter` counts, each once."""

    def remember(self, windows: Sequence[Tensor]) -> object:
        """What `replays` of these windows needs to know of the dense model; small, None if nothing.

        To be asked before anything is changed in the model.
        """

    def replays(self, windows: Sequence[Tensor], remembered: object = None) -> list[Replay]:
        """The forward passes in which `observe` counts these windows, to be run again and again.

        remembered: what `remember` gave for the same windows; by default it is asked now.
        """

    def hypothesis(self, window: Tensor, along: Sequence[int] | None = None) -> Hypothesis:
        """What it writes for one window, and the posteriors along the tokens `along`."""

    def transcribe(self, windows: Iterable[Tensor]) -> Transcript:
        """Hears the consecutive windows of one recording."""

    def transcribe_all(self, recordings: Iterable[Iterable[Tensor]]) -> Iterator[Transcript]:
        """Hears recordings in their order, several at once where that is faster.

        Each is its consecutive windows.
        """
