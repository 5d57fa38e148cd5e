"""What every model that can be personalized offers, whatever it hears or sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import nn

from fpspeech.models.source import Source


class PretrainedModel(Protocol):
    """A pretrained network and what pruning must know about it."""

    @property
    def source(self) -> Source:
        """The checkpoint it was loaded from."""

    @property
    def network(self) -> nn.Module:
        """The model itself, in evaluation mode."""

    @property
    def family(self) -> str:
        """The `model_type` of its configuration."""

    @property
    def exclusions(self) -> Mapping[str, str]:
        """Layers left dense by default: patterns of module names -> the reason."""

    @property
    def components(self) -> Mapping[str, tuple[str, ...]]:
        """Names for parts of the model, such as `encoder.ffn` -> patterns of layer names."""

    def reads_tokens(self, layer: str) -> bool:
        """Whether the positions of a layer's input are tokens, not frames or pixels."""

    def save_pretrained(self, folder: Path) -> None:
        """Writes a stock folder: weights as they are now, and the processor."""
