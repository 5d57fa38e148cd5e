"""A dataset of speech as the Hugging Face Hub holds it: Parquet with encoded audio."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from fpspeech.corpora.hub_audio import AudioDataset

RATE = 16_000


def encoded(seconds: float, seed: int, kind: str = "FLAC") -> bytes:
    content = io.BytesIO()
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * RATE))
    soundfile.write(content, samples, RATE, format=kind)
    return content.getvalue()


def dataset(folder: Path, rows: list[dict], **columns: str | None) -> AudioDataset:
    """A folder of Parquet as the Hub holds it: audio as bytes and a name."""
    folder.mkdir(parents=True, exist_ok=True)
    half = len(rows) // 2
    for part, some in enumerate((rows[:half], rows[half:])):
        table = pa.Table.from_pylist(some)
        pq.write_table(table, folder / f"train-{part:05d}-of-00002.parquet")
    return AudioDataset(str(folder), "train", **columns)


def row(number: int, speaker: str | int | None = "ann", **more) -> dict:
    audio = {"bytes": encoded(0.5, number), "path": f"{number}.flac"}
    return {"audio": audio, "speaker_id": speaker, "text": f"Words  {number}", **more}
