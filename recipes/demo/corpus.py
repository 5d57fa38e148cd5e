"""Stage 0 of the demo: its speakers, and recordings to train the base model."""

from __future__ import annotations

import argparse
import random
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import soundfile
import torch

from recipes.audio_store import write_audio_store
from recipes.demo.sentences import commands, different_commands, word_string
from recipes.demo.voices import (
    DEMO_SPEAKERS,
    DemoSpeaker,
    training_voice,
    validation_voice,
)
from recipes.manifest import Recording, write_manifest
from recipes.rooms import Room, random_room, record
from recipes.speech_synthesis import SAMPLE_RATE, Voice, check_engines, synthesize

SEED = 20260
EDGE_SECONDS = 0.15  # of room noise before and after a demo utterance


def write_training_corpus(folder: Path, count: int) -> None:
    """Dry recordings (rooms are added while training); a fifth are word strings."""
    rng = random.Random(SEED)
    texts = list(islice(commands(rng, test=False), count * 4 // 5))
    texts += [word_string(rng) for _ in range(count - len(texts))]
    write_audio_store(folder, spoken([(text, training_voice(rng)) for text in texts]))


def write_validation_corpus(folder: Path, count: int) -> None:
    """Test sentences of voices that are neither training's nor the demo's, each in a room."""
    rng = random.Random(SEED + 1)
    generator = torch.Generator().manual_seed(SEED + 1)
    lines = [(text, validation_voice(rng)) for text in different_commands(rng, count, test=True)]
    write_audio_store(
        folder,
        (
            (text, voice, placed(signal, random_room(generator), generator))
            for text, voice, signal in spoken(lines)
        ),
    )


def write_demo_speakers(folder: Path, adapt: int, test: int) -> None:
    """FLAC files and `manifest.jsonl`; adaptation sentences are never test sentences."""
    recordings = (_write(speaker, folder, adapt, test) for speaker in DEMO_SPEAKERS)
    write_manifest(folder / "manifest.jsonl", chain.from_iterable(recordings))


def _write(speaker: DemoSpeaker, folder: Path, adapt: int, test: int) -> Iterator[Recording]:
    seed = zlib.crc32(speaker.name.encode())  # so adding a speaker changes no other
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    for split, count in (("adapt", adapt), ("test", test)):
        texts = different_commands(rng, count, test=split == "test")
        lines = [(text, speaker.voice) for text in texts]
        for number, (text, _, signal) in enumerate(spoken(lines)):
            identity = f"{speaker.name}-{split}-{number:02d}"
            audio = Path("speakers", speaker.name, split, f"{identity}.flac")
            path = folder / audio
            path.parent.mkdir(parents=True, exist_ok=True)
            heard = placed(signal, speaker.room, generator).clamp(-1, 1)
            soundfile.write(path, heard.numpy(), SAMPLE_RATE, subtype="PCM_16")
            yield Recording(identity, audio.as_posix(), speaker.name, text, split)


def spoken(lines: list[tuple[str, Voice]]) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(text, voice, signal) of each line, in order; the engines run side by side."""
    torch.set_num_threads(1)
    with ThreadPoolExecutor(max_workers=3) as pool:
        signals = pool.map(lambda line: synthesize(*line), lines)
        for number, ((text, voice), signal) in enumerate(zip(lines, signals, strict=True), 1):
            if number % 2000 == 0:
                print(f"{number} of {len(lines)} utterances", flush=True)
            yield text, str(voice), signal


def placed(signal: torch.Tensor, room: Room, generator: torch.Generator) -> torch.Tensor:
    """The signal with silent edges, heard in a room."""
    edge = int(EDGE_SECONDS * SAMPLE_RATE)
    padded = torch.nn.functional.pad(signal, (edge, edge))
    return record(padded[None], [room], generator)[0]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path, help="folder for the demo speakers")
    parser.add_argument("--exp", type=Path, help="not used")
    parser.add_argument("--adapt", type=int, default=36, help="adaptation utterances a speaker")
    parser.add_argument("--test", type=int, default=40, help="test utterances a speaker")
    arguments = parser.parse_args()
    if (arguments.data_dir / "manifest.jsonl").exists():
        return
    try:
        check_engines()
    except RuntimeError as error:
        parser.error(str(error))
    write_demo_speakers(arguments.data_dir, arguments.adapt, arguments.test)


if __name__ == "__main__":
    main()
