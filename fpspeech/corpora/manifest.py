"""Utterances: from a manifest, a folder of files or a folder per speaker, and back to a manifest.

A manifest is JSONL (one object a line) or CSV (with a header line), in UTF-8, with the keys
``audio`` (a path, relative to the folder of the manifest), ``speaker``, and optionally ``id``,
``text`` and ``split`` ("adapt" or "test"). Keys that are not known are passed over.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from fpspeech.corpora.containers import AUDIO_SUFFIXES
from fpspeech.corpora.folders import from_folder
from fpspeech.corpora.utterance import (
    SPLITS,
    Found,
    ManifestError,
    Utterance,
    decode,
    only,
    require_audio_files,
    require_distinct_ids,
    require_splits_apart,
)

__all__ = ["ManifestError", "Utterance", "read_utterances", "write_manifest"]

KEYS = ("audio", "speaker", "id", "text", "split")
MANIFEST_NAMES = ("manifest.jsonl", "manifest.csv")

OTHER_NAMES = {
    "audio_file": "audio",
    "audio_filepath": "audio",
    "audio_path": "audio",
    "file": "audio",
    "filename": "audio",
    "filepath": "audio",
    "path": "audio",
    "wav": "audio",
    "client_id": "speaker",
    "speaker_id": "speaker",
    "spk": "speaker",
    "spk_id": "speaker",
    "utt_id": "id",
    "utterance_id": "id",
    "sentence": "text",
    "transcript": "text",
    "transcription": "text",
    "subset": "split",
}
"""What other manifests call our keys: named in the error instead of passed over."""


def read_utterances(
    path: str | Path, *, with_text: bool = False, speaker: str | None = None
) -> list[Utterance]:
    """Read the utterances of a corpus, sorted by id.

    ``path`` is a ``.jsonl`` or ``.csv`` manifest; a folder that holds ``manifest.jsonl`` or
    ``manifest.csv``; a folder of audio files, all of one speaker named ``speaker``, else after the
    folder (folders within it included); or a folder that holds one folder per speaker. In folders,
    files below one called ``adapt`` or ``test`` belong to that split, and an id is the name of the
    speaker and the path below the speaker's folder, without its suffix.

    With ``speaker``, only that speaker's utterances are returned. Without ``with_text``, no
    transcript is kept, and no ``NAME.txt`` beside ``NAME.wav`` is opened. Audio is not opened here.
    Raises ``ManifestError``.
    """
    path = Path(path)
    found = list(_find(path, with_text, speaker))
    require_distinct_ids(found)
    if speaker is not None:
        found = only(path, found, speaker)
    require_audio_files(path, found)
    require_splits_apart(found)
    return sorted((each.utterance for each in found), key=lambda utterance: utterance.id)


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write a JSONL manifest in one step: the old file or the new one is there, never a part.

    Audio paths are written relative to the folder of the manifest where there is such a path, so
    that the corpus can be moved as a whole. Raises ``ManifestError`` for another suffix.
    """
    path = Path(path)
    if path.suffix.lower() != ".jsonl":
        raise ManifestError(
            f"{path}: expected a name that ends in .jsonl, found {path.suffix!r}; rename it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent.resolve()
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8", newline="\n") as file:
            for utterance in utterances:
                file.write(json.dumps(_row(utterance, folder), ensure_ascii=False) + "\n")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _row(utterance: Utterance, folder: Path) -> dict[str, str]:
    # Only the folder is resolved: a link to an audio file keeps its own name.
    audio = utterance.audio.parent.resolve() / utterance.audio.name
    try:
        written = Path(os.path.relpath(audio, folder)).as_posix()
    except ValueError:  # another drive
        written = audio.as_posix()
    row = {"id": utterance.id, "audio": written, "speaker": utterance.speaker}
    if utterance.text is not None:
        row["text"] = utterance.text
    if utterance.split is not None:
        row["split"] = utterance.split
    return row


def _find(path: Path, with_text: bool, speaker: str | None) -> Iterator[Found]:
    if not path.exists():
        raise ManifestError(
            f"{path}: expected a manifest or a folder of audio, found nothing; check the path"
        )
    if not path.is_dir():
        return _from_manifest(path, with_text, speaker)
    manifests = [path / name for name in MANIFEST_NAMES if (path / name).is_file()]
    if len(manifests) > 1:
        raise ManifestError(
            f"{path}: expected one manifest, found {' and '.join(MANIFEST_NAMES)}; "
            "give the path of the one to use"
        )
    if manifests:
        return _from_manifest(manifests[0], with_text, speaker)
    return from_folder(path, with_text, speaker)


def _from_manifest(path: Path, with_text: bool, speaker: str | None) -> Iterator[Found]:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        rows = _jsonl_rows(path, with_text)
    elif suffix == ".csv":
        rows = _csv_rows(path, with_text)
    else:
        remedy = "give the folder that holds it" if suffix in AUDIO_SUFFIXES else "convert it"
        raise ManifestError(
            f"{path}: expected a folder or a manifest (.jsonl, .csv), found {suffix!r}; {remedy}"
        )
    empty = True
    for line, row in rows:
        empty = False
        where = f"{path}, line {line}"
        yield Found(_utterance(path.parent, where, row, speaker), where)
    if empty:
        raise ManifestError(
            f"{path}: expected one utterance a line, found none; write at least one line"
        )


def _jsonl_rows(path: Path, with_text: bool) -> Iterator[tuple[int, dict[str, object]]]:
    def keep(pairs: list[tuple[str, object]]) -> dict[str, object]:
        return {key: value if _kept(key, with_text) else None for key, value in pairs}

    # Not splitlines: JSON allows other line separators (U+2028) inside a string.
    for number, line in enumerate(decode(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=keep)
        except json.JSONDecodeError as error:
            raise ManifestError(
                f"{where}: expected one JSON object, found bad JSON ({error.msg} at column "
                f"{error.colno}); put each object on one line, with double quotes"
            ) from error
        if not isinstance(row, dict):
            raise ManifestError(
                f"{where}: expected a JSON object with the keys audio and speaker, "
                f"found a {type(row).__name__}; write {{...}} on each line"
            )
        yield number, row


def _csv_rows(path: Path, with_text: bool) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.reader(io.StringIO(decode(path), newline=""), strict=True)
    header: list[str] | None = None
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if header is None:
                header = [field.strip() for field in fields]
                continue
            if len(fields) > len(header):
                raise ManifestError(
                    f"{path}, line {reader.line_num}: expected {len(header)} fields as in the "
                    f"header, found {len(fields)}; put double quotes around text with commas"
                )
            yield (
                reader.line_num,
                {
                    key: (value.strip() or None) if _kept(key, with_text) else None
                    for key, value in zip(header, fields, strict=False)
                },
            )
    except csv.Error as error:
        raise ManifestError(
            f"{path}, line {reader.line_num}: expected CSV, found {error}; check the quotes"
        ) from error


def _kept(key: str, with_text: bool) -> bool:
    """Say whether the value of a key is kept: transcripts go before anything can see them."""
    return key in KEYS and (with_text or key != "text")


def _utterance(folder: Path, where: str, row: dict[str, object], speaker: str | None) -> Utterance:
    _refuse_other_names(where, row)
    audio = _value(where, row, "audio")
    if audio is None:
        raise _missing(where, row, "audio", "add the path of the recording")
    name = _value(where, row, "speaker")
    if name is None:
        name = speaker
    if name is None:
        raise _missing(where, row, "speaker", "add it, or say whose recordings these are")
    if Path(audio).suffix.lower() not in AUDIO_SUFFIXES:
        raise ManifestError(
            f"{where}: expected audio ending in one of {' '.join(AUDIO_SUFFIXES)}, "
            f"found {audio!r}; convert it to WAV or FLAC"
        )
    split = _value(where, row, "split")
    if split not in (None, *SPLITS):
        raise ManifestError(
            f"{where}: expected split 'adapt' or 'test', found {split!r}; "
            "use one of them, or leave it out"
        )
    identity = _value(where, row, "id")
    if identity is None:
        identity = PurePath(audio).with_suffix("").as_posix()
    return Utterance(identity, folder / audio, name, _value(where, row, "text"), split)


def _value(where: str, row: dict[str, object], key: str) -> str | None:
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and key in ("speaker", "id"):
        value = str(value)
    if value is None:
        return None
    if not isinstance(value, str):
        raise ManifestError(
            f"{where}: expected {key} to be a string, found {value!r}; put it in double quotes"
        )
    return value.strip() or None


def _missing(where: str, row: dict[str, object], key: str, remedy: str) -> ManifestError:
    keys = ", ".join(sorted(row)) or "none"
    return ManifestError(f"{where}: expected the key {key!r}, found the keys {keys}; {remedy}")


def _refuse_other_names(where: str, row: dict[str, object]) -> None:
    for key in row:
        if key in KEYS:
            continue
        lower = key.strip().lower()
        close = difflib.get_close_matches(lower, KEYS, n=1, cutoff=0.8)
        meant = OTHER_NAMES.get(lower) or (close[0] if close else None)
        if meant is not None and meant not in row:
            raise ManifestError(
                f"{where}: expected the keys {', '.join(KEYS)}, found {key!r}; "
                f"rename {key!r} to {meant!r}"
            )
