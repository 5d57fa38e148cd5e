"""Opening a sound file, and noticing what libsndfile passes over: one that was cut short."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

AUDIO_SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
"""File name endings taken for audio, in lower case; case is ignored when names are compared."""

OGG_PAGE_BYTES = 65_307  # the largest page that RFC 3533 allows
HEADER_SLACK_BYTES = 44  # some writers count the WAV header as sound; nothing audible is missing


class UnusableAudio(ValueError):
    """A file that holds no sound to work with; ``path`` and ``reason`` (a short phrase) say why."""

    def __init__(self, path: Path, reason: str, expected: str, found: str, remedy: str) -> None:
        # All of it goes into args, so that the error survives a trip between processes.
        super().__init__(path, reason, expected, found, remedy)
        self.path = path
        self.reason = reason
        self._detail = f"expected {expected}, found {found}; {remedy}"

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}: {self._detail}"


def truncated(path: Path, expected: str, found: str) -> UnusableAudio:
    """Return the error for a file that ends, or stops decoding, before it should."""
    return UnusableAudio(path, "truncated", expected, found, "copy or download the file again")


def unreadable(path: Path, error: OSError) -> UnusableAudio:
    """Return the error for a file that the system does not let us read."""
    if isinstance(error, FileNotFoundError):
        return UnusableAudio(path, "missing", "an audio file", "nothing", "check the path")
    found = error.strerror or str(error)
    remedy = "check that it is a file you may read"
    return UnusableAudio(path, "unreadable", "an audio file", found, remedy)


class _Forward(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A sound file that is only read on from where it is."""

    # Where soundfile may seek it does after every read, which fails at the end of a FLAC whose
    # header does not say how long it is.
    def seekable(self) -> bool:
        return False


def open_sound(path: Path) -> soundfile.SoundFile:
    """Open a file for decoding, refusing one that libsndfile would shorten without a word."""
    _require_last_ogg_page(path)
    chunk = _sound_chunk(path)
    if chunk is not None and chunk.promised - chunk.present > HEADER_SLACK_BYTES:
        raise truncated(
            path, f"{chunk.promised} bytes of sound, as its header says", f"{chunk.present}"
        )
    source: Any = path
    if chunk is not None and chunk.left_open:
        source = _OpenEnded(path, chunk.size_at)
    try:
        return _Forward(source)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a name ending in .raw
        said = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
        found = f"something else (libsndfile says: {said.rstrip('.')})"
        remedy = "convert it to WAV or FLAC (for example with ffmpeg), or remove it"
        raise UnusableAudio(
            path, "not audio", "WAV, FLAC, OGG, MP3 or AIFF", found, remedy
        ) from error


@dataclass(frozen=True)
class _SoundChunk:
    """Where a WAV or AIFF file holds its samples, and how many bytes of them."""

    size_at: int  # byte offset of the field that holds the size
    promised: int  # bytes; 0 where the header makes no promise
    present: int  # bytes from the start of the samples to the end of the file
    left_open: bool  # the size is 0, was never filled in, and bytes follow it


def _sound_chunk(path: Path) -> _SoundChunk | None:
    """Walk the chunks of a WAV, RF64 or AIFF file; None for other kinds or where there is none."""
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        order = {b"RIFF": "<", b"RF64": "<", b"RIFX": ">", b"FORM": ">"}.get(head[:4])
        if order is None or len(head) < 12:
            return None
        (whole,) = struct.unpack(order + "I", head[4:8])
        wide: int | None = None
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack(order + "4sI", header)
            body = file.tell()
            if name == b"ds64" and len(sizes := file.read(16)) == 16:
                (wide,) = struct.unpack("<8xQ", sizes)
            if name in (b"data", b"SSND"):
                present = length - body
                # A closed file of no sound may still hold tags after it: its outer size is right.
                closed = length - 1 <= whole + 8 <= length + 1
                left_open = name == b"data" and size == 0 and present > 0 and not closed
                if head[:4] == b"RF64" and wide is not None:
                    size = wide
                elif _is_placeholder(size):
                    size = 0
                return _SoundChunk(body - 4, size, present, left_open)
            file.seek(body + size + (size & 1))
    return None


def _is_placeholder(size: int) -> bool:
    """Say whether a size is one that programs write when they cannot come back to fill it in."""
    # ffmpeg writes 2**32 - 1, arecord 2**31, sox 2**31 - 2**12, each rounded down to a frame.
    return size == 0 or 0x7FFF_E000 <= size <= 0x8000_0000 or size >= 0xFFFF_E000


class _OpenEnded(io.FileIO):
    """A WAV whose sizes were left at 0, read as if they said "to the end of the file"."""

    # libsndfile takes 2**32 - 1 for that, but 0 for no sound at all.
    def __init__(self, path: Path, size_at: int) -> None:
        super().__init__(path)
        self._overlaid = [*range(4, 8), *range(size_at, size_at + 4)]

    def readinto(self, buffer: Any) -> int:
        start = self.tell()
        count = super().readinto(buffer) or 0
        view = memoryview(buffer).cast("B")
        for offset in self._overlaid:
            if start <= offset < start + count:
                view[offset - start] = 0xFF
        return count


def _require_last_ogg_page(path: Path) -> None:
    """Refuse an Ogg file that ends inside a page; libsndfile would end it at the page before."""
    try:
        length = path.stat().st_size
        with path.open("rb") as file:
            if file.read(4) != b"OggS":
                return
            file.seek(max(0, length - OGG_PAGE_BYTES))
            tail = file.read()
    except OSError as error:
        raise unreadable(path, error) from error
    at = tail.rfind(b"OggS")
    if at < 0:
        return
    # The header: 26 bytes, the number of segments, and then the length of each.
    page = tail[at:]
    lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if len(page) <= 26 or len(lengths) < page[26] or len(page) < 27 + len(lengths) + sum(lengths):
        raise truncated(path, "a complete last Ogg page", "a part of one")
