"""Generic numbers of the demo's base model: training voices, each utterance in a random room."""

from __future__ import annotations

import argparse
import random
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import soundfile
import torch

from fpspeech.corpora import Utterance
from fpspeech.generic import BESIDE_MODEL, Generic, measure_generic
from fpspeech.models import load_speech_model
from recipes.demo.corpus import placed, spoken
from recipes.demo.sentences import commands
from recipes.demo.voices import training_voice
from recipes.rooms import random_room
from recipes.speech_synthesis import SAMPLE_RATE, check_engines

SEED = 777


def write_utterances(folder: Path, count: int) -> list[Utterance]:
    """Sentences that the demo may train on; no voice, and no room, is a demo speaker's."""
    rng, generator = random.Random(SEED), torch.Generator().manual_seed(SEED)
    lines = [(text, training_voice(rng)) for text in islice(commands(rng, test=False), count)]
    found = []
    for number, (_, voice, signal) in enumerate(spoken(lines)):
        path = folder / f"{number:04d}.flac"
        heard = placed(signal, random_room(generator), generator).clamp(-1, 1)
        soundfile.write(path, heard.numpy(), SAMPLE_RATE, subtype="PCM_16")
        found.append(Utterance(path.stem, path, voice))
    return found


def write_generic(model: Path, count: int = 300) -> Generic:
    """Measures the base model in this folder, and writes the file beside its weights."""
    with TemporaryDirectory() as folder:
        utterances = write_utterances(Path(folder), count)
        found = measure_generic(load_speech_model(model, device="cpu"), utterances)
    found.save(model / BESIDE_MODEL)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the base model; the file goes beside")
    parser.add_argument("--utterances", type=int, default=300)
    arguments = parser.parse_args()
    try:
        check_engines()
    except RuntimeError as error:
        parser.error(str(error))
    found = write_generic(arguments.model, arguments.utterances)
    print(f"{found.speakers} voices, {found.seconds / 60:.1f} minutes in {BESIDE_MODEL}")


if __name__ == "__main__":
    main()
