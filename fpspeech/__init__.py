"""Personalizes speech recognition to one speaker by pruning: no labels, no backpropagation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fpspeech.config import Config
    from fpspeech.corpora import Utterance, read_utterances
    from fpspeech.evaluate_speech import evaluate
    from fpspeech.models import load_speech_model
    from fpspeech.personal import Personal, merge
    from fpspeech.personalize_speech import personalize
    from fpspeech.pruning import PruningConfig

__all__ = [
    "Config",
    "Personal",
    "PruningConfig",
    "Utterance",
    "evaluate",
    "load_speech_model",
    "merge",
    "personalize",
    "read_utterances",
]

# Loaded when first used: `fpspeech --help` need not wait for torch.
_HOME = {
    "Config": "fpspeech.config",
    "Personal": "fpspeech.personal",
    "PruningConfig": "fpspeech.pruning",
    "Utterance": "fpspeech.corpora",
    "evaluate": "fpspeech.evaluate_speech",
    "load_speech_model": "fpspeech.models",
    "merge": "fpspeech.personal",
    "personalize": "fpspeech.personalize_speech",
    "read_utterances": "fpspeech.corpora",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fpspeech' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
