"""From a model's configuration to the adapter of its family."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import torch

from fpspeech.models.image_model import ImageModel
from fpspeech.models.resnet import load_resnet
from fpspeech.models.source import ModelError, Source, find_model
from fpspeech.models.speech_model import SpeechModel
from fpspeech.models.wav2vec2 import Wav2Vec2
from fpspeech.models.whisper import Whisper

_SPEECH: dict[str, type[Wav2Vec2] | type[Whisper]] = {"wav2vec2": Wav2Vec2, "whisper": Whisper}
IMAGE = {"resnet": load_resnet}


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
    return _SPEECH[_family(source, _SPEECH)].load(source, _device(device), language)


def load_image_model(
    model: str | Path, *, revision: str | None = None, device: str = "auto"
) -> ImageModel:
    """Loads an image classifier from a folder or Hub id.

    device: "auto" takes the GPU where there is one. Raises ModelError when the model cannot be
    found or its family is not supported.
    """
    source = find_model(model, revision)
    return IMAGE[_family(source, IMAGE)](source, _device(device))


def _family(source: Source, known: Iterable[str]) -> str:
    family = str(source.config().get("model_type"))
    if family not in known:
        nearest = difflib.get_close_matches(family, known, n=1)
        raise ModelError(
            f"{source.id} is of model type {family!r}: expected one of {sorted(known)}"
            + (f", such as {nearest[0]}" if nearest else "")
        )
    return family


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
