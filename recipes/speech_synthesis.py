"""Speech from text by two programs of Debian, espeak-ng and flite."""

from __future__ import annotations

import io
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import torch
import torchaudio.functional

SAMPLE_RATE = 16_000  # Hz
ESPEAK_SAMPLE_RATE = 22_050  # Hz, of every formant voice
ESPEAK_WORDS_PER_MINUTE = 170
WAV_HEADER_BYTES = 44


@dataclass(frozen=True)
class Voice:
    """One synthetic voice.

    `name` is a voice of the engine ("en-gb+f3" for espeak-ng, "slt" for flite). `pitch` is 0-99
    for espeak-ng and the mean F0 in Hz for flite; None keeps the voice's own. `rate` multiplies
    the speed. `size` scales the vocal tract by resampling (1.1: 10 % longer, a deeper voice)
    and leaves the speed as `rate` says.
    """

    engine: str
    name: str
    pitch: float | None = None
    rate: float = 1.0
    size: float = 1.0

    def __str__(self) -> str:
        pitch = "own" if self.pitch is None else f"{self.pitch:.0f}"
        return f"{self.engine}:{self.name}:p{pitch}:r{self.rate:.2f}:s{self.size:.2f}"


def check_engines() -> None:
    """Raise RuntimeError, naming the packages to install, unless both programs are there."""
    missing = [engine for engine in ("espeak-ng", "flite") if shutil.which(engine) is None]
    if missing:
        raise RuntimeError(
            f"speech synthesis needs the program(s) {', '.join(missing)}, which are not on PATH; "
            f"on Debian or Ubuntu: sudo apt-get install {' '.join(missing)}"
        )


def synthesize(text: str, voice: Voice) -> torch.Tensor:
    """Say `text`; float32 samples at 16 kHz, shape = (n_samples,), peak 0.5."""
    speak = {"espeak-ng": _espeak, "flite": _flite}[voice.engine]
    samples, sample_rate = speak(text.lower(), voice)
    # Played `size` times slower, the formants fall by `size`; the engine spoke faster for it.
    signal = torchaudio.functional.resample(
        torch.from_numpy(samples), round(sample_rate / voice.size / 50) * 50, SAMPLE_RATE
    )
    return signal * (0.5 / signal.abs().max().clamp_min(1e-4))


def _espeak(text: str, voice: Voice) -> tuple[np.ndarray, int]:
    words_per_minute = round(ESPEAK_WORDS_PER_MINUTE * voice.rate * voice.size)
    command = ["espeak-ng", "-v", voice.name, "-s", str(words_per_minute), "--stdout"]
    if voice.pitch is not None:
        command += ["-p", str(round(voice.pitch))]
    output = subprocess.run([*command, text], check=True, capture_output=True).stdout
    # The header of a stream claims an impossible length, so the samples are read past it.
    samples = np.frombuffer(output[WAV_HEADER_BYTES:], dtype="<i2")
    return samples.astype(np.float32) / 32768, ESPEAK_SAMPLE_RATE


def _flite(text: str, voice: Voice) -> tuple[np.ndarray, int]:
    stretch = 1 / (voice.rate * voice.size)
    command = ["flite", "-voice", voice.name, "--setf", f"duration_stretch={stretch:.3f}"]
    if voice.pitch is not None:
        # The F0 given is the F0 heard, after `size` has lowered it.
        command += ["--setf", f"int_f0_target_mean={voice.pitch * voice.size:.1f}"]
    with TemporaryDirectory() as folder:
        path = Path(folder, "speech.wav")  # flite seeks back to write the length: no pipe
        subprocess.run([*command, "-t", text, "-o", str(path)], check=True, capture_output=True)
        samples, sample_rate = soundfile.read(io.BytesIO(path.read_bytes()), dtype="float32")
    return samples, sample_rate
