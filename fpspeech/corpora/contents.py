"""What recordings contain, whatever their names: the same recording is known again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fpspeech.corpora.audio import fingerprint
from fpspeech.corpora.containers import UnusableAudio
from fpspeech.corpora.utterance import Utterance


def with_contents(utterances: Iterable[Utterance]) -> Iterator[tuple[Utterance, str]]:
    """Each recording with its `fingerprint`; those that cannot be used are left out."""
    for utterance in utterances:
        try:
            yield utterance, fingerprint(utterance.audio)
        except UnusableAudio:
            continue


def contents(utterances: Iterable[Utterance]) -> set[str]:
    """SHA-256 of the recordings that can be used."""
    return {content for _, content in with_contents(utterances)}
