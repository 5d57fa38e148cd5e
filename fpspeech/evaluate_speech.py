"""How well a model hears recordings that have transcripts: dense beside personal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fpspeech.corpora import (
    Recording,
    UnusableAudio,
    Utterance,
    inspect_recording,
    read_windows,
    with_contents,
)
from fpspeech.evaluation import (
    Hallucinations,
    Interval,
    Paired,
    TextNormalizer,
    WordErrors,
    bootstrap_interval,
    hallucinations,
    paired_comparison,
    word_errors,
)
from fpspeech.listening import Listener, Skipped
from fpspeech.models import SpeechModel
from fpspeech.personal import Personal, Recordings


class NothingToEvaluateError(ValueError):
    """No recording is left to measure the word error rate on."""


@dataclass(frozen=True)
class TestSet:
    """The recordings a model is measured on, and those that were left out.

    utterances, recordings: each with the file it was found usable in, in the same order.
    already_heard: recordings that were used to adapt. without_text: recordings with no transcript.
    """

    __test__ = False  # the name is the field's term; pytest must not collect it

    utterances: tuple[Utterance, ...]
    recordings: tuple[Recording, ...]
    already_heard: int = 0
    without_text: int = 0
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Recognition:
    """Transcripts of a test set under one model, scored."""

    errors: WordErrors
    interval: Interval
    hallucinations: Hallucinations

    @property
    def wer(self) -> float:
        """Corpus word error rate."""
        return self.errors.wer


@dataclass(frozen=True)
class Evaluation:
    """Dense beside personal on the same recordings."""

    test_set: TestSet
    dense: Recognition
    personal: Recognition
    comparison: Paired


def choose_test_set(
    utterances: Sequence[Utterance],
    adapted_on: Recordings | None = None,
    listener: Listener | None = None,
) -> TestSet:
    """Keeps what can be measured on: transcribed, usable, and never heard while adapting.

    Recordings marked `adapt` in their corpus are left out too where others are marked `test`.
    Raises NothingToEvaluateError, with the counts, when nothing is left.
    """
    listener = listener or Listener()
    marked = any(utterance.split == "test" for utterance in utterances)
    kept: list[Utterance] = []
    recordings: list[Recording] = []
    skipped: list[Skipped] = []
    heard = without_text = 0
    for utterance in utterances:
        if marked and utterance.split != "test":
            continue
        if utterance.text is None:
            without_text += 1
            continue
        try:
            recording = inspect_recording(utterance.audio)
        except UnusableAudio as error:
            skipped.append(Skipped(utterance.id, error.reason))
            listener.skipped(skipped[-1], str(error))
            continue
        if adapted_on is not None and adapted_on.holds(recording.sha256):
            heard += 1
            continue
        kept.append(utterance)
        recordings.append(recording)
    if not kept:
        raise NothingToEvaluateError(
            f"nothing to evaluate on: of {len(utterances)} recordings, {heard} were used to "
            f"adapt, {without_text} have no transcript and {len(skipped)} cannot be used; "
            "expected transcribed recordings that were held back (personalize --hold-out 0.3 "
            "holds some back)"
        )
    return TestSet(tuple(kept), tuple(recordings), heard, without_text, tuple(skipped))


def recognise(
    model: SpeechModel,
    test_set: TestSet,
    normalizer: TextNormalizer,
    *,
    seed: int = 0,
    listener: Listener | None = None,
) -> Recognition:
    """Transcribes a test set with the model as it is now, and scores it.

    The interval is a 95 % bootstrap over utterances.
    """
    listener = listener or Listener()
    hypotheses: list[str] = []
    at_cap: list[int] = []
    rate, longest = model.sampling_rate, model.window_seconds
    transcripts = model.transcribe_all(
        read_windows(recording, sampling_rate=rate, window_seconds=longest)
        for recording in test_set.recordings
    )
    for recording, transcript in zip(test_set.recordings, transcripts, strict=True):
        hypotheses.append(transcript.text)
        at_cap.append(transcript.at_cap)
        listener.heard(recording.seconds)
    errors = word_errors(
        [utterance.id for utterance in test_set.utterances],
        [utterance.text or "" for utterance in test_set.utterances],
        hypotheses,
        normalizer,
    )
    if not errors.words:
        raise NothingToEvaluateError(
            f"the transcripts of all {len(test_set.utterances)} recordings are empty after "
            f"normalisation ({normalizer.name}): nothing to measure a word error rate on"
        )
    interval = bootstrap_interval(errors.utterance_errors, errors.utterance_words, seed=seed)
    return Recognition(errors, interval, hallucinations(errors, hypotheses, at_cap))


def compare(dense: Recognition, other: Recognition, *, seed: int = 0) -> Paired:
    """Paired bootstrap of two models on the same recordings: difference is other minus dense."""
    return paired_comparison(
        dense.errors.utterance_errors,
        other.errors.utterance_errors,
        dense.errors.utterance_words,
        seed=seed,
    )


def evaluate(
    model: SpeechModel,
    personal: Personal,
    utterances: Sequence[Utterance],
    normalizer: TextNormalizer,
    *,
    seed: int = 0,
    listener: Listener | None = None,
) -> Evaluation:
    """Measures the speaker's word error rate, dense beside personal, on held-back recordings."""
    test_set = choose_test_set(utterances, personal.recordings, listener)
    dense = recognise(model, test_set, normalizer, seed=seed, listener=listener)
    with personal.apply(model):
        pruned = recognise(model, test_set, normalizer, seed=seed, listener=listener)
    return Evaluation(test_set, dense, pruned, compare(dense, pruned, seed=seed))


def find_speaker(utterances: Sequence[Utterance], personal: Personal) -> str | None:
    """The speaker whose recordings the personal model was adapted on, if they are here."""
    for utterance, content in with_contents(u for u in utterances if u.split != "test"):
        if personal.recordings.holds(content):
            return utterance.speaker
    return None
