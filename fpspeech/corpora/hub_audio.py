"""Speech from the Hugging Face Hub: rows of a dataset, streamed, as recordings and a manifest.

Audio is taken as the bytes the dataset holds and decoded by libsndfile; ffmpeg and torchcodec have
no part in it. Only the rows that are kept are written, so a corpus of a terabyte can be sampled.
"""

from __future__ import annotations

import difflib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import soundfile

from fpspeech.corpora.apart import apart_by_group, prompt_words, split_of_prompt
from fpspeech.corpora.audio import inspect_recording
from fpspeech.corpora.containers import UnusableAudio
from fpspeech.corpora.hub import HubSplit, class_names, undecoded
from fpspeech.corpora.layout import corpus_utterances, warn_skipped
from fpspeech.corpora.manifest import write_manifest
from fpspeech.corpora.utterance import ManifestError, Utterance

MANIFEST, SESSIONS = "manifest.jsonl", "sessions.json"
NOBODY = ("", "none", "null")
"""What a dataset calls a speaker who is not known, in any case."""

SUFFIXES = {
    "AIFF": ".aiff",
    "FLAC": ".flac",
    "MP3": ".mp3",
    "MPEG": ".mp3",
    "OGG": ".ogg",
    "RF64": ".wav",
    "WAV": ".wav",
    "WAVEX": ".wav",
}
"""What a file of each libsndfile format is called."""


@dataclass(frozen=True)
class AudioDataset(HubSplit):
    """A split of a dataset of speech; beside its place (`HubSplit`) the names of its columns.

    ``text`` and ``session`` (a chapter, a day, a session) are None where the dataset has none;
    ``speaker`` is None where all rows are one person's, or nobody says whose.
    """

    audio: str = "audio"
    speaker: str | None = "speaker_id"
    text: str | None = "text"
    session: str | None = None

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield the rows, one at a time, with the audio as ``{"bytes": ..., "path": ...}``.

        A text that the dataset holds as the number of a class comes as the name of the class.
        Raises ``ManifestError`` where the dataset cannot be had or lacks one of the columns.
        """
        found = self.stream(ManifestError)
        try:
            if found.column_names is not None:
                self._require_columns(found.column_names)
                # The others may be sound as well, which would be decoded.
                found = found.select_columns(list(self._columns().values()))
            names = class_names(found, self.text) if self.text is not None else None
            for row in undecoded(found, self.audio, "Audio"):
                self._require_columns(list(row))
                if names is not None and row[self.text] is not None:
                    row = {**row, self.text: names[row[self.text]]}
                yield row
        except ManifestError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise self.unreadable(error, ManifestError) from error

    def _columns(self) -> dict[str, str]:
        roles = ("audio", "speaker", "text", "session")
        named = {role: getattr(self, role) for role in roles}
        return {role: column for role, column in named.items() if column is not None}

    def _require_columns(self, columns: list[str]) -> None:
        for role, column in self._columns().items():
            if column not in columns:
                near = difflib.get_close_matches(column, columns, n=1, cutoff=0.0)
                raise ManifestError(
                    f"{self.path}: expected a column {column!r} as {role}, found "
                    f"{', '.join(columns)}; the nearest is {near[0]!r}: name the right one, or None"
                )


def save_hub_audio(
    dataset: AudioDataset,
    target: str | Path,
    *,
    max_utterances: int | None = None,
    max_seconds: float | None = None,
    max_speaker_utterances: int | None = None,
    seed: int = 0,
    test_share: float = 0.5,
) -> list[Utterance]:
    """Write recordings of a dataset below a folder, with ``manifest.jsonl``; returns what it says.

    Rows are taken in the order of the dataset until there are ``max_utterances``, or the next one
    would make it more than ``max_seconds`` of sound; those of a speaker who has
    ``max_speaker_utterances`` already are passed over. The bytes of the dataset are written
    unchanged, as ``SPEAKER/NUMBER.suffix`` by the number of the row. Rows without sound that
    ``inspect_recording`` takes, and without a speaker, are skipped with a count in the log.

    Split as `split_hub_audio` says; the sessions it needs are kept beside the manifest. Raises
    ``ManifestError``, also where nothing was written and for a folder that holds a manifest.
    """
    target = Path(target)
    manifest = target / MANIFEST
    if manifest.exists():
        raise ManifestError(
            f"{manifest}: expected a folder without a manifest, found one; use it as it is, or "
            "remove it to save the recordings again"
        )
    seconds = 0.0
    sessions: dict[str, str] = {}
    saved: list[Utterance] = []
    each_speaker: Counter[str] = Counter()
    unusable, nobody = [], []
    for number, row in enumerate(dataset.rows()):
        if max_utterances is not None and len(saved) >= max_utterances:
            break
        speaker = _speaker(dataset, row)
        if speaker is None:
            nobody.append(str(number))
            continue
        if max_speaker_utterances is not None and each_speaker[speaker] >= max_speaker_utterances:
            continue
        folder = target / quote(speaker, safe="").replace(".", "%2E")
        try:
            audio, length = _save(row[dataset.audio], folder / f"{number:07d}")
        except UnusableAudio as error:
            unusable.append(f"row {number} ({error.reason})")
            continue
        if max_seconds is not None and seconds + length > max_seconds:
            audio.unlink()
            break
        seconds += length
        each_speaker[speaker] += 1
        identity = f"{speaker}/{number:07d}"
        saved.append(Utterance(identity, audio, speaker, _text(dataset, row)))
        if dataset.session is not None:
            sessions[identity] = str(row[dataset.session])
    warn_skipped(dataset.path, "rows without usable audio", unusable)
    warn_skipped(dataset.path, "rows of no speaker", nobody)
    split = split_hub_audio(saved, sessions, test_share, seed)
    utterances = corpus_utterances(target, ((each, each.audio) for each in split))
    (target / SESSIONS).write_text(json.dumps(sessions, ensure_ascii=False), encoding="utf-8")
    write_manifest(manifest, utterances)  # last: it says that all is there
    return utterances


def split_hub_audio(
    utterances: Sequence[Utterance], sessions: Mapping[str, str], test_share: float, seed: int
) -> list[Utterance]:
    """Split by session where there are any, by utterance id (`split_groups`).

    Else by the words of the texts (`split_of_prompt`); where nobody has a text, in order
    (`split_in_order`).
    """
    if sessions or not any(each.text for each in utterances):
        return apart_by_group(utterances, lambda each: sessions.get(each.id, ""), test_share, seed)
    return [_by_words(each, test_share, seed) for each in utterances]


def _by_words(utterance: Utterance, test_share: float, seed: int) -> Utterance:
    words = prompt_words(utterance.text or "") or utterance.id
    return replace(utterance, split=split_of_prompt(words, test_share, seed))


def _speaker(dataset: AudioDataset, row: Mapping[str, Any]) -> str | None:
    if dataset.speaker is None:
        return dataset.path.rstrip("/").rpartition("/")[2]
    name = str(row[dataset.speaker]).strip()
    return None if name.lower() in NOBODY else name


def _text(dataset: AudioDataset, row: Mapping[str, Any]) -> str | None:
    value = row[dataset.text] if dataset.text is not None else None
    return " ".join(str(value).split()) or None if value is not None else None


def _save(audio: Mapping[str, Any] | None, name: Path) -> tuple[Path, float]:
    """Write a row's audio as a file of that name and its own suffix; returns path and seconds."""
    content = _content(audio, name)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as sound:
            kind = sound.format
    except (soundfile.SoundFileError, TypeError) as error:
        raise UnusableAudio(
            name, "not audio", "bytes that libsndfile decodes", f"{len(content)} others", "skip it"
        ) from error
    if kind not in SUFFIXES:
        raise UnusableAudio(name, "not audio", ", ".join(SUFFIXES), kind, "convert it")
    path = name.with_name(name.name + SUFFIXES[kind])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        return path, inspect_recording(path).seconds
    except UnusableAudio:
        path.unlink()
        raise


def _content(audio: Mapping[str, Any] | None, name: Path) -> bytes:
    """Return the bytes of a row's audio, or those of the file it names."""
    if audio is not None and audio.get("bytes"):
        return bytes(audio["bytes"])
    place = audio.get("path") if audio is not None else None
    if not place:
        raise UnusableAudio(name, "empty", "sound", "neither bytes nor a path", "skip it")
    import fsspec  # type: ignore[import-untyped]

    try:
        with fsspec.open(place, "rb") as file:
            return bytes(file.read())
    except OSError as error:
        raise UnusableAudio(name, "missing", "a file", str(error), "skip it") from error
