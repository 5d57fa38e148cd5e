"""Speech from the Hugging Face Hub: rows of a dataset, streamed, as recordings and a manifest.

Audio is taken as the bytes the dataset holds and decoded by libsndfile; ffmpeg and torchcodec have
no part in it. Only the rows that are kept are written, so a corpus of a terabyte can be sampled.
"""

from __future__ import annotations

import difflib
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import soundfile

from fpspeech.corpora.apart import apart_by_group, prompt_words, split_of_prompt
from fpspeech.corpora.audio import inspect_recording
from fpspeech.corpora.containers import UnusableAudio
from fpspeech.corpora.layout import corpus_utterances, warn_skipped
from fpspeech.corpora.manifest import write_manifest
from fpspeech.corpora.utterance import ManifestError, Utterance

MANIFEST = "manifest.jsonl"

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
class AudioDataset:
    """A dataset of speech on the Hub, or a local folder that `datasets.load_dataset` reads.

    ``path``, ``split``, ``name``, ``data_dir`` and ``revision`` are as in `load_dataset`; the
    others are names of columns. ``text`` and ``session`` (a chapter, a day, a session) are None
    where the dataset has none; ``speaker`` is None where all rows are one person's.
    """

    path: str
    split: str
    name: str | None = None
    data_dir: str | None = None
    revision: str | None = None
    audio: str = "audio"
    speaker: str | None = "speaker_id"
    text: str | None = "text"
    session: str | None = None

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield the rows, one at a time, with the audio as ``{"bytes": ..., "path": ...}``.

        Raises ``ManifestError`` where the dataset cannot be had or lacks one of the columns.
        """
        try:
            import datasets
        except ImportError as error:
            raise ManifestError(
                f"{self.path}: reading a Hugging Face dataset needs the package datasets; "
                "install fpspeech[datasets]"
            ) from error
        try:
            found = datasets.load_dataset(
                self.path,
                self.name,
                split=self.split,
                data_dir=self.data_dir,
                revision=self.revision,
                streaming=True,
            )
            if found.column_names is not None:
                self._require_columns(found.column_names)
                # The others may be sound as well, which would be decoded.
                found = found.select_columns(list(self._columns().values()))
            for row in found.cast_column(self.audio, datasets.Audio(decode=False)):
                self._require_columns(list(row))
                yield row
        except ManifestError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise ManifestError(
                f"{self.path}: expected a dataset that can be read, found {type(error).__name__}: "
                f"{error}; check name, split and network, and for a gated one accept its terms on "
                "the Hub and log in"
            ) from error

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

    Split by session where there is such a column (`split_groups`), else by the words of the text
    (`split_of_prompt`), else in order (`split_in_order`). Raises ``ManifestError``, also where
    nothing was written and for a folder that holds a manifest already.
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
        sessions[identity] = str(row[dataset.session]) if dataset.session is not None else ""
    warn_skipped(dataset.path, "rows without usable audio", unusable)
    warn_skipped(dataset.path, "rows of no speaker", nobody)
    if dataset.session is None and dataset.text is not None:
        split = [_by_words(each, test_share, seed) for each in saved]
    else:
        split = apart_by_group(saved, lambda each: sessions[each.id], test_share, seed)
    utterances = corpus_utterances(target, ((each, each.audio) for each in split))
    write_manifest(manifest, utterances)
    return utterances


def _by_words(utterance: Utterance, test_share: float, seed: int) -> Utterance:
    words = prompt_words(utterance.text or "") or utterance.id
    return replace(utterance, split=split_of_prompt(words, test_share, seed))


def _speaker(dataset: AudioDataset, row: Mapping[str, Any]) -> str | None:
    if dataset.speaker is None:
        return dataset.path.rstrip("/").rpartition("/")[2]
    value = row[dataset.speaker]
    return str(value).strip() or None if value is not None else None


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
