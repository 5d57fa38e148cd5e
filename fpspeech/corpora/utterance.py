"""An utterance, and what a set of them must satisfy wherever it is read from."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("adapt", "test")


class ManifestError(ValueError):
    """A corpus that cannot be read as given; names the file and line, and the remedy."""


@dataclass(frozen=True)
class Utterance:
    """One recording of one speaker; ``split`` is None, "adapt" or "test"."""

    id: str
    audio: Path
    speaker: str
    text: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Found:
    """An utterance and where it is written, for the errors."""

    utterance: Utterance
    where: str


def only(path: Path, found: list[Found], speaker: str) -> list[Found]:
    """Keep one speaker's utterances; raises ``ManifestError`` where there are none."""
    chosen = [each for each in found if each.utterance.speaker == speaker]
    if chosen:
        return chosen
    names = sorted({each.utterance.speaker for each in found})
    near = difflib.get_close_matches(speaker, names, n=1, cutoff=0.0)
    raise ManifestError(
        f"{path}: expected a speaker of this corpus, found no {speaker!r}; "
        f"the nearest is {near[0]!r}, and the speakers are {some(names, shown=20)}"
    )


def require_distinct_ids(found: list[Found]) -> None:
    """Raise ``ManifestError`` where two utterances have one id."""
    seen: dict[str, str] = {}
    for each in found:
        identity = each.utterance.id
        if identity in seen:
            raise ManifestError(
                f"{each.where}: expected an id of its own, found {identity!r}, which "
                f"{seen[identity]} has too; change or remove one"
            )
        seen[identity] = each.where


def require_audio_files(path: Path, found: list[Found]) -> None:
    """Raise ``ManifestError`` where the audio of an utterance does not exist."""
    missing = [each for each in found if not each.utterance.audio.is_file()]
    if missing:
        shown = some([f"{each.utterance.audio} ({each.where})" for each in missing])
        raise ManifestError(
            f"{path}: expected {len(found)} audio files, found {len(missing)} missing: {shown}; "
            "relative paths start at the folder of the manifest"
        )


def require_splits_apart(found: list[Found]) -> None:
    """Raise ``ManifestError`` where one file is both in adapt and in test."""
    by_split: dict[str | None, dict[Path, Found]] = {"adapt": {}, "test": {}, None: {}}
    for each in found:
        by_split[each.utterance.split][each.utterance.audio.resolve()] = each
    for audio, tested in by_split["test"].items():
        if audio in by_split["adapt"]:
            adapted = by_split["adapt"][audio]
            raise ManifestError(
                f"{tested.where}: expected a recording in one split, found "
                f"{tested.utterance.audio} in test here and in adapt at {adapted.where}; "
                "remove it from one of them"
            )


def some(names: list[str], shown: int = 5) -> str:
    """Join the first names for an error, and count the rest."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def decode(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark; raises ``ManifestError``."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManifestError(
            f"{path}, line {line}: expected UTF-8, found the byte 0x{content[error.start]:02x}; "
            "save the file as UTF-8"
        ) from error
