"""Baselines beside the pruned models: they learn by backpropagation, still without transcripts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from fpspeech.corpora import Utterance
from fpspeech.evaluate_speech import Recognition, TestSet, recognise
from fpspeech.evaluation import TextNormalizer
from fpspeech.evaluation.baselines import lora_on_pseudo_labels, suta_transcribe
from fpspeech.listening import WindowStream
from fpspeech.models import SpeechModel
from fpspeech.models.speech_model import Transcript
from fpspeech.models.wav2vec2 import Wav2Vec2
from fpspeech.pruning import PruningError

BASELINES = ("suta", "lora")


@dataclass(frozen=True)
class BaselineRun:
    """A baseline measured on a speaker; learning_seconds: wall time before the first test."""

    recognition: Recognition
    learning_seconds: float


@dataclass(frozen=True)
class _Suta:
    """A model that adapts to every recording while it transcribes it."""

    model: Wav2Vec2

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def transcribe_all(self, recordings: Iterable[Iterable[Tensor]]) -> Iterator[Transcript]:
        return (suta_transcribe(self.model, windows) for windows in recordings)


def run_baseline(
    name: str,
    model: SpeechModel,
    adapt: Sequence[Utterance],
    test_set: TestSet,
    normalizer: TextNormalizer,
    *,
    seed: int = 0,
) -> BaselineRun:
    """Measures "suta" (adapts to each test recording) or "lora" (learns from `adapt` first).

    The model is left as it was. Raises PruningError for other names, and for SUTA on a model that
    is no CTC model.
    """
    if name not in BASELINES:
        raise PruningError(f"no baseline is named {name!r}: expected one of {list(BASELINES)}")
    started = time.perf_counter()
    learnt: AbstractContextManager[object] = nullcontext()
    tested = model
    if name == "lora":
        learnt = lora_on_pseudo_labels(model, list(WindowStream(model, adapt)))
    elif isinstance(model, Wav2Vec2):
        tested = cast(SpeechModel, _Suta(model))
    else:
        raise PruningError(
            f"SUTA adapts CTC models; {model.source.id} is a {model.family}: leave the baseline out"
        )
    with learnt:
        seconds = time.perf_counter() - started
        return BaselineRun(recognise(tested, test_set, normalizer, seed=seed), seconds)
