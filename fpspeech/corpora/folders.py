"""Utterances from folders: one of a speaker's files, or one that holds a folder per speaker."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path, PurePath

from fpspeech.corpora.containers import AUDIO_SUFFIXES
from fpspeech.corpora.utterance import SPLITS, Found, ManifestError, Utterance, decode, some

UNREAD_SUFFIXES = (".3gp", ".aac", ".amr", ".m4a", ".mp4", ".webm", ".wma")
"""Sound that libsndfile does not decode."""

log = logging.getLogger(__name__)


def from_folder(root: Path, with_text: bool, speaker: str | None) -> Iterator[Found]:
    """Yield the utterances below a folder in the order of their paths.

    See ``read_utterances`` for the layouts. Audio of a kind that cannot be read is passed over
    with a warning in the log. Raises ``ManifestError`` for a folder without audio.
    """
    files = _files_below(root)
    audio = [file for file in files if file.suffix.lower() in AUDIO_SUFFIXES]
    if not audio:
        raise ManifestError(
            f"{root}: expected audio files ({' '.join(AUDIO_SUFFIXES)}) or a manifest, "
            f"found {_suffixes(files)}; convert other audio to WAV or FLAC, or check the path"
        )
    unread = [str(file) for file in files if file.suffix.lower() in UNREAD_SUFFIXES]
    if unread:
        log.warning("skipped %d files to convert to WAV first: %s", len(unread), some(unread))
    tops = {file.relative_to(root).parts[0] for file in audio}
    one_speaker = any(file.parent == root for file in audio) or _are_splits(tops)
    for file in audio:
        within = PurePath(file.relative_to(root))
        if one_speaker:
            name = speaker if speaker is not None else root.resolve().name
        else:
            name = within.parts[0]
            within = PurePath(*within.parts[1:])
        splits = [part.lower() for part in within.parts[:-1] if part.lower() in SPLITS]
        utterance = Utterance(
            id=f"{name}/{within.with_suffix('').as_posix()}",
            audio=file,
            speaker=name,
            text=_sidecar(file) if with_text else None,
            split=splits[-1] if splits else None,
        )
        yield Found(utterance, str(file))


def _are_splits(folders: set[str]) -> bool:
    return {folder.lower() for folder in folders} <= set(SPLITS)


def _files_below(root: Path) -> list[Path]:
    files = []
    # A linked folder is followed at the top (a speaker kept elsewhere) and not below (loops).
    for top in sorted(root.iterdir()):
        below = top.rglob("*") if top.is_dir() else [top]
        files += [file for file in below if file.is_file()]
    # Names that begin with a dot are no recordings: macOS writes ._NAME.wav beside NAME.wav.
    return sorted(
        file
        for file in files
        if not any(part.startswith(".") for part in file.relative_to(root).parts)
    )


def _suffixes(files: list[Path]) -> str:
    suffixes = sorted({file.suffix.lower() or "no suffix" for file in files})
    return f"only {some(suffixes)}" if suffixes else "no files"


def _sidecar(audio: Path) -> str | None:
    path = audio.with_suffix(".txt")
    if not path.is_file():
        return None
    return decode(path).strip() or None
