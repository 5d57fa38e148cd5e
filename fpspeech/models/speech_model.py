"""What every speech model family offers; one adapter a family implements it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fpspeech.models.pretrained import PretrainedModel
from fpspeech.pruning import Observer


@dataclass(frozen=True)
class Transcript:
    """What a model heard in one recording.

    at_cap: windows whose output was cut at the cap on new tokens, a sign of repetition.
    """

    text: str
    at_cap: int = 0


class SpeechModel(PretrainedModel, Protocol):
    """A pretrained recogniser as the rest of the toolkit sees it."""

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the audio it takes."""

    @property
    def window_seconds(self) -> float:
        """The longest piece of audio it takes at once."""

    def observe(self, windows: Sequence[Tensor], observer: Observer) -> None:
        """Runs the model over windows of float32 samples while `observer` counts, each once."""

    def transcribe(self, windows: Iterable[Tensor]) -> Transcript:
        """Hears the consecutive windows of one recording."""
