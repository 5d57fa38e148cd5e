"""From a model's configuration to the adapter of its family."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch

from fpspeech.models.source import ModelError, find_model
from fpspeech.models.speech_model import SpeechModel
from fpspeech.models.wav2vec2 import Wav2Vec2

_SPEECH = {"wav2vec2": Wav2Vec2}


def load_speech_model(
    model: str | Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    language: str = "en",
) -> SpeechModel:
    """Loads a recogniser from a folder or Hub id.

    device: "auto" takes the GPU where there is one. language: what is spoken, for models that
    know several. Raises ModelError when the model cannot be
    found or its family is not supported.
    """
    source = find_model(model, revision)
    family = str(source.config().get("model_type"))
    if family not in _SPEECH:
        nearest = difflib.get_close_matches(family, _SPEECH, n=1)
        raise ModelError(
            f"{source.id} is of model type {family!r}: expected one of {sorted(_SPEECH)}"
            + (f", such as {nearest[0]}" if nearest else "")
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return _SPEECH[family].load(source, device, language)
