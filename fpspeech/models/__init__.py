"""Pretrained models behind one interface; the only files that import transformers models."""

from fpspeech.models.image_model import ImageModel
from fpspeech.models.pretrained import PretrainedModel
from fpspeech.models.registry import load_image_model, load_speech_model
from fpspeech.models.source import ModelError, Source, find_model
from fpspeech.models.speech_model import SpeechModel, Transcript

__all__ = [
    "ImageModel",
    "ModelError",
    "PretrainedModel",
    "Source",
    "SpeechModel",
    "Transcript",
    "find_model",
    "load_image_model",
    "load_speech_model",
]
