"""Manifests: one JSON object a line with id, audio, speaker, text and split."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import soundfile
import torch
import torchaudio.functional

SAMPLE_RATE = 16_000  # Hz


@dataclass(frozen=True)
class Recording:
    """A line of a manifest; `audio` is relative to the manifest's folder, or absolute."""

    id: str
    audio: str
    speaker: str
    text: str
    split: str


def write_manifest(path: Path, recordings: Iterable[Recording]) -> None:
    """Write the lines in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(asdict(recording)) + "\n" for recording in recordings)
    path.write_text(lines, encoding="utf-8")


def read_manifest(path: Path) -> list[Recording]:
    """The recordings of a manifest."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Recording(**json.loads(line)) for line in lines]


def read_audio(path: Path) -> torch.Tensor:
    """A mono recording at 16 kHz, shape = (n_samples,)."""
    samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    signal = torch.from_numpy(samples).mean(1)
    return torchaudio.functional.resample(signal, sample_rate, SAMPLE_RATE)
