"""What every speech model family offers; one adapter a family implements it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from fpspeech.models.source import Source
from fpspeech.pruning import Observer


@dataclass(frozen=True)
class Transcript:
    """What a model heard in one recording.

    at_cap: windows whose output was cut at the cap on new tokens, a sign of repetition.
    """

    text: str
    at_cap: int = 0


class SpeechModel(Protocol):
    """A pretrained recogniser as the rest of the toolkit sees it."""

    @property
    def source(self) -> Source:
        """The checkpoint it was loaded from."""

    @property
    def network(self) -> nn.Module:
        """The model itself, in evaluation mode."""

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the audio it takes."""

    @property
    def window_seconds(self) -> float:
        """The longest piece of audio it takes at once."""

    @property
    def family(self) -> str:
        """The `model_type` of its configuration."""

    @property
    def exclusions(self) -> Mapping[str, str]:
        """Layers left dense by default: patterns of module names -> the reason."""

    def observe(self, windows: Sequence[Tensor], observer: Observer) -> None:
        """Runs the model over windows of float32 samples while `observer` counts, each once."""

    @property
    def components(self) -> Mapping[str, tuple[str, ...]]:
        """Names for parts of the model, such as `encoder.ffn` -> patterns of layer names."""

    def transcribe(self, windows: Iterable[Tensor]) -> Transcript:
        """Hears the consecutive windows of one recording."""

    def save_pretrained(self, folder: Path) -> None:
        """Writes a stock Hugging Face folder: weights as they are now, and the processor."""
