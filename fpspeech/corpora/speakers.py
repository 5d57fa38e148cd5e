"""Who is in a corpus, and how much of each: what file headers say, without decoding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import soundfile

from fpspeech.corpora.audio import UNKNOWN_FRAMES
from fpspeech.corpora.utterance import Utterance


@dataclass(frozen=True)
class SpeakerSummary:
    """One speaker of a corpus.

    ``utterances`` counts all of them; ``adapt`` and ``test`` those of each split; ``transcribed``
    those with a text; ``unusable`` those whose header cannot be read or promises no sound.
    ``seconds`` adds up the others.
    """

    name: str
    utterances: int
    seconds: float
    adapt: int
    test: int
    transcribed: int
    unusable: int


def summarise_speakers(utterances: Iterable[Utterance]) -> list[SpeakerSummary]:
    """Count the utterances and seconds of each speaker, sorted by name.

    Only headers are read, so a file counted here can still turn out truncated or silent when
    ``inspect_recording`` decodes it. Raises nothing for unusable files: they are counted.
    """
    by_speaker: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_speaker.setdefault(utterance.speaker, []).append(utterance)
    return [_summarise(name, by_speaker[name]) for name in sorted(by_speaker)]


def _summarise(name: str, utterances: list[Utterance]) -> SpeakerSummary:
    lengths = [_header_seconds(utterance) for utterance in utterances]
    return SpeakerSummary(
        name=name,
        utterances=len(utterances),
        seconds=sum(length for length in lengths if length is not None),
        adapt=sum(utterance.split == "adapt" for utterance in utterances),
        test=sum(utterance.split == "test" for utterance in utterances),
        transcribed=sum(utterance.text is not None for utterance in utterances),
        unusable=sum(length is None for length in lengths),
    )


def _header_seconds(utterance: Utterance) -> float | None:
    """Return the length that a header gives in seconds, or None where it gives none."""
    try:
        header = soundfile.info(str(utterance.audio))
    except (soundfile.SoundFileError, OSError, TypeError):
        return None
    if not 0 < header.frames < UNKNOWN_FRAMES:
        return None
    return float(header.frames / header.samplerate)
