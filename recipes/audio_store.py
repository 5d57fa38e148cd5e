"""Many short recordings in one file of samples with an index beside it.

Training reads tens of thousands of utterances in random order; one memory-mapped file of
16-bit samples makes that cheap.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

SAMPLE_RATE = 16_000  # Hz


@dataclass(frozen=True)
class StoredUtterance:
    """What was said, by whom, and where its samples lie."""

    text: str
    speaker: str
    start: int
    n_samples: int


class AudioStore:
    """A folder with `samples.i16` and `utterances.jsonl`, open for reading."""

    def __init__(self, folder: Path) -> None:
        lines = Path(folder, "utterances.jsonl").read_text(encoding="utf-8").splitlines()
        self.utterances = [StoredUtterance(**json.loads(line)) for line in lines]
        self._samples = np.memmap(Path(folder, "samples.i16"), dtype=np.int16, mode="r")

    def __len__(self) -> int:
        return len(self.utterances)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for index, utterance in enumerate(self.utterances):
            yield utterance.text, self.signal(index)

    def signal(self, index: int) -> torch.Tensor:
        """Float32 samples of one utterance, shape = (n_samples,)."""
        utterance = self.utterances[index]
        samples = self._samples[utterance.start : utterance.start + utterance.n_samples]
        return torch.from_numpy(samples.astype(np.float32) / 32768)


def write_audio_store(folder: Path, recordings: Iterable[tuple[str, str, torch.Tensor]]) -> None:
    """Write (text, speaker, signal) triples; the index comes last, so it marks completion."""
    folder.mkdir(parents=True, exist_ok=True)
    index, start = [], 0
    with Path(folder, "samples.i16").open("wb") as file:
        for text, speaker, signal in recordings:
            samples = (signal * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy()
            file.write(samples.tobytes())
            index.append(StoredUtterance(text, speaker, start, len(samples)))
            start += len(samples)
    lines = "".join(json.dumps(asdict(utterance)) + "\n" for utterance in index)
    Path(folder, "utterances.jsonl").write_text(lines, encoding="utf-8")
