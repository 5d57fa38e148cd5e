"""Pretrained models behind one interface; the only files that import transformers models."""

from fpspeech.models.registry import load_speech_model
from fpspeech.models.source import ModelError, Source, find_model
from fpspeech.models.speech_model import SpeechModel, Transcript

__all__ = ["ModelError", "Source", "SpeechModel", "Transcript", "find_model", "load_speech_model"]
