"""Recordings: is a file usable, and its sound as mono windows at one rate, in constant memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torchaudio
from torch import Tensor

from fpspeech.corpora.containers import (
    AUDIO_SUFFIXES,
    UnusableAudio,
    open_sound,
    truncated,
    unreadable,
)

__all__ = [
    "AUDIO_SUFFIXES",
    "SILENCE_DBFS",
    "Recording",
    "UnusableAudio",
    "fingerprint",
    "inspect_recording",
    "is_silent",
    "read_audio",
    "read_windows",
]

SILENCE_DBFS = -60.0
"""dBFS. Half the span from the lowest to the highest sample is below this: silence.

The span, not the level, so that a constant offset of a cheap sound card counts as silence; the
peak, not the mean, so that one word in a minute of silence does not.
"""

CUT_SEARCH_SECONDS = 0.5  # s; how far from the even cut a quieter one is looked for
CUT_FRAME_SECONDS = 0.02  # s; the stretch whose energy says how quiet a cut is
BLOCK_FRAMES = 1 << 16  # frames decoded at a time (a frame is one sample of every channel)
HASH_BYTES = 1 << 20
UNKNOWN_FRAMES = 1 << 62  # libsndfile answers 2**63 - 1 where a stream does not say its length

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """A file that was read to its end and found usable.

    ``seconds`` counts the sound that decodes, not what the header says; ``sampling_rate`` is in
    Hz, as stored; ``sha256`` (hex) is of the bytes of the file, a fingerprint that shows when a
    recording is in two sets at once.
    """

    path: Path
    seconds: float
    sampling_rate: int
    channels: int
    sha256: str

    @property
    def frames(self) -> int:
        """The number of samples of one channel, at the rate of the file."""
        return round(self.seconds * self.sampling_rate)


def inspect_recording(path: str | Path, *, min_seconds: float = 0.1) -> Recording:
    """Decode a file from start to end, block by block, and describe it.

    Memory does not grow with the length of the file. Raises ``UnusableAudio``, with ``reason`` one
    of "missing", "unreadable", "not audio", "empty", "truncated", "contains NaN", "contains
    infinity", "too short" (less than ``min_seconds``) or "silence only" (below ``SILENCE_DBFS``).
    """
    path = Path(path)
    sha256 = fingerprint(path)
    frames, lowest, highest = 0, math.inf, -math.inf
    with open_sound(path) as source:
        rate, channels = source.samplerate, source.channels
        for block in _blocks(path, source):
            _require_finite(path, block, frames, rate)
            mono = block.mean(axis=1)
            lowest, highest = min(lowest, float(mono.min())), max(highest, float(mono.max()))
            frames += len(block)
        _require_whole(path, source, frames)
    if frames == 0:
        raise UnusableAudio(path, "empty", "sound", "0 samples", "record it again or remove it")
    seconds = frames / rate
    if seconds < min_seconds:
        raise UnusableAudio(
            path,
            "too short",
            f"at least {min_seconds:g} s",
            f"{seconds:.3f} s",
            "remove it or join it to its neighbours",
        )
    if _span_is_silent(lowest, highest):
        raise UnusableAudio(
            path,
            "silence only",
            f"sound above {SILENCE_DBFS:g} dBFS",
            f"a peak of {_dbfs((highest - lowest) / 2):.1f} dBFS",
            "check the microphone, or remove the file",
        )
    return Recording(path, seconds, rate, channels, sha256)


def read_windows(
    recording: Recording | str | Path,
    *,
    sampling_rate: int = 16_000,
    window_seconds: float = 20.0,
) -> Iterator[Tensor]:
    """Read a recording as consecutive mono windows of near-equal length, one in memory at a time.

    Yields float32 tensors, shape (samples,), full scale 1.0, the mean over the channels, at
    ``sampling_rate`` Hz. There are ceil(seconds / window_seconds) windows, none longer than
    ``window_seconds`` rounded up to a sample. At the rate of the file they abut exactly: no sample
    is lost or repeated. Each is resampled by itself, so their lengths add up to within one sample
    a window. A cut is moved to the quietest point within ``CUT_SEARCH_SECONDS`` as far as the
    limit on the length leaves room.

    A path is inspected first (one more pass); a ``Recording`` is not. Raises ``ValueError`` for a
    rate or a length that is not positive, and ``UnusableAudio`` for what ``inspect_recording``
    refuses, or with the reason "changed" for a file that changed since.
    """
    if sampling_rate <= 0:
        raise ValueError(f"sampling_rate: expected a positive number of Hz, found {sampling_rate}")
    if not 0 < window_seconds < math.inf:
        raise ValueError(f"window_seconds: expected positive seconds, found {window_seconds}")
    if not isinstance(recording, Recording):
        recording = inspect_recording(recording)
    return _windows(recording, sampling_rate, window_seconds)


def read_audio(path: str | Path, sampling_rate: int = 16_000) -> Tensor:
    """Read a whole file into memory: float32, shape (samples,), mono, at ``sampling_rate`` Hz.

    For short recordings; ``read_windows`` is for the others. Raises ``UnusableAudio`` as
    ``inspect_recording`` does, but takes a file of any length above zero.
    """
    recording = inspect_recording(path, min_seconds=0.0)
    windows = read_windows(recording, sampling_rate=sampling_rate, window_seconds=recording.seconds)
    return next(windows)


def is_silent(window: Tensor) -> bool:
    """Say whether a window, shape (samples,), stays below ``SILENCE_DBFS``; an empty one does."""
    if window.numel() == 0:
        return True
    lowest, highest = torch.aminmax(window)
    return _span_is_silent(float(lowest), float(highest))


def _windows(recording: Recording, sampling_rate: int, window_seconds: float) -> Iterator[Tensor]:
    rate, total = recording.sampling_rate, recording.frames
    # Rounded up, so that 2.5 s at 11,025 Hz still divides 5 s in two.
    longest = max(1, math.ceil(window_seconds * rate - 1e-6))
    count = -(-total // longest)
    even = -(-total // count)
    # Both ends of a window may move, so each gets half of the room that an even window leaves.
    margin = min(round(CUT_SEARCH_SECONDS * rate), (longest - even) // 2)
    start = 0
    pending: Samples = np.empty(0, np.float32)  # read beyond the last cut, not yet yielded
    with open_sound(recording.path) as source:
        if source.samplerate != rate:
            raise _changed(recording, f"{rate} Hz", f"{source.samplerate} Hz")
        for index in range(1, count + 1):
            target = total * index // count
            reach = total if index == count else target + margin
            fresh = _read_mono(recording, source, reach - start - len(pending))
            pending = np.concatenate([pending, fresh])
            if index == count or margin == 0:
                cut = reach - start
            else:
                cut = _quietest(pending, target - margin - start, reach - start, rate)
            window = torch.from_numpy(pending[:cut].copy())
            pending = pending[cut:]
            start += cut
            yield torchaudio.functional.resample(window, rate, sampling_rate)


def _quietest(samples: Samples, low: int, high: int, rate: int) -> int:
    """Return the index in [low, high] in the middle of the stretch with the least energy."""
    frame = max(1, round(CUT_FRAME_SECONDS * rate))
    if high - low <= frame:
        return (low + high) // 2
    region = samples[low:high].astype(np.float64)
    energy = np.concatenate([[0.0], np.cumsum((region - region.mean()) ** 2)])
    return low + int(np.argmin(energy[frame:] - energy[:-frame])) + frame // 2


def _read_mono(recording: Recording, source: soundfile.SoundFile, frames: int) -> Samples:
    parts: list[Samples] = []
    wanted = frames
    for block in _blocks(recording.path, source, frames):
        parts.append(block.mean(axis=1))
        wanted -= len(block)
    if wanted:
        raise _changed(recording, f"{recording.frames} samples", f"{wanted} fewer")
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _changed(recording: Recording, expected: str, found: str) -> UnusableAudio:
    remedy = "the file changed since it was inspected: inspect it again"
    return UnusableAudio(recording.path, "changed", expected, found, remedy)


def _blocks(
    path: Path, source: soundfile.SoundFile, frames: int = UNKNOWN_FRAMES
) -> Iterator[Samples]:
    """Yield the next ``frames`` frames, shape (frames, channels), or as many as there are."""
    while frames > 0:
        try:
            block = source.read(min(frames, BLOCK_FRAMES), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            said = error.error_string.rstrip(".")
            raise truncated(path, "audio that decodes to its end", said) from error
        if len(block) == 0:
            return
        frames -= len(block)
        yield block


def _require_finite(path: Path, block: Samples, before: int, rate: int) -> None:
    finite = np.isfinite(block).all(axis=1)
    if finite.all():
        return
    second = (before + int(np.argmin(finite))) / rate
    reason = "contains NaN" if np.isnan(block).any() else "contains infinity"
    found = f"a sample that is not finite at {second:.3f} s"
    raise UnusableAudio(path, reason, "finite samples", found, "export the file again")


def _require_whole(path: Path, source: soundfile.SoundFile, frames: int) -> None:
    # The length of an MP3 is an estimate where no Xing header gives it: what decodes is the truth.
    if source.format != "MP3" and frames < source.frames < UNKNOWN_FRAMES:
        raise truncated(path, f"{source.frames} samples, as its header says", f"{frames}")


def _span_is_silent(lowest: float, highest: float) -> bool:
    return _dbfs((highest - lowest) / 2) < SILENCE_DBFS


def _dbfs(amplitude: float) -> float:
    return 20 * math.log10(amplitude) if amplitude > 0 else -math.inf


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of the bytes of a file, refusing what cannot be read or holds none."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(HASH_BYTES):
                digest.update(chunk)
            size = file.tell()
    except OSError as error:
        raise unreadable(path, error) from error
    if size == 0:
        raise UnusableAudio(path, "empty", "sound", "0 bytes", "copy the file again or remove it")
    return digest.hexdigest()
