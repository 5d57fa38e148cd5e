"""Stage 0 of FSDD: the base model, from four speakers and synthetic digits."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torchaudio.functional
from transformers import Wav2Vec2ForCTC

from fpspeech.compare import at_most
from fpspeech.corpora import Utterance, find_corpus
from fpspeech.corpora.fsdd import DIGITS
from fpspeech.corpora.utterance import ManifestError
from fpspeech.demo import demo_model
from fpspeech.generic import BESIDE_MODEL, in_turns, measure_generic
from fpspeech.models import load_speech_model
from recipes.audio_store import AudioStore, write_audio_store
from recipes.base_model import save_base_model
from recipes.ctc_training import Training, train
from recipes.demo.voices import training_voice
from recipes.manifest import Recording, read_audio, read_manifest, write_manifest
from recipes.speech_synthesis import Voice, check_engines, synthesize

SEED = 20261
GENERIC_MINUTES = 5.0
LEFT_OUT = ("theo", "nicolas")  # the recipe personalizes to them
VALIDATION_TAKES = ("00", "01", "02", "03", "04")  # where no whole speaker is held out
REPEATS = 3  # of a real recording, against each synthetic one once
TELEPHONE_RATE = 8_000  # Hz, the corpus' own


def write_training_manifest(path: Path, data_dir: Path | None) -> None:
    """The recordings of the other four speakers; raises ManifestError where there are none."""
    found = find_corpus("fsdd").utterances(data_dir)
    write_manifest(
        path,
        (
            Recording(each.id, str(each.audio.resolve()), each.speaker, each.text or "", "train")
            for each in found
            if each.speaker not in LEFT_OUT
        ),
    )


def write_stores(manifest: Path, exp: Path, synthetic: int, development: Sequence[str]) -> None:
    """Real and synthetic digits to train on, and real ones to validate."""
    real = read_manifest(manifest)
    held_out = [recording for recording in real if _is_validation(recording, development)]
    kept = [recording for recording in real if recording not in held_out]
    write_audio_store(exp / "validation", _read(held_out, exp))

    def everything() -> Iterator[tuple[str, str, torch.Tensor]]:
        for _ in range(REPEATS):
            yield from _read(kept, exp)
        yield from _synthetic_digits(synthetic)

    write_audio_store(exp / "training", everything())


def _is_validation(recording: Recording, development: Sequence[str]) -> bool:
    if development:
        return recording.speaker in development
    return recording.id.endswith(VALIDATION_TAKES)


def _read(found: list[Recording], exp: Path) -> Iterator[tuple[str, str, torch.Tensor]]:
    for recording in found:
        signal = read_audio(exp / recording.audio)
        yield recording.text, recording.speaker, signal * (0.5 / signal.abs().max())


def _synthetic_digits(count: int) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Single digits in the demo's training voices, through a telephone's band."""
    rng = random.Random(SEED)
    lines = [(rng.choice(DIGITS), training_voice(rng)) for _ in range(count)]
    with ThreadPoolExecutor(max_workers=3) as pool:
        for (text, voice), signal in zip(lines, pool.map(_telephone, lines), strict=True):
            yield text, str(voice), signal


def _telephone(line: tuple[str, Voice]) -> torch.Tensor:
    narrow = torchaudio.functional.resample(synthesize(*line), 16_000, TELEPHONE_RATE)
    # Recordings of the corpus are cut close to the word.
    loud = (narrow.abs() > 0.01).nonzero()
    narrow = narrow[int(loud[0]) : int(loud[-1]) + 1]
    return torchaudio.functional.resample(narrow, TELEPHONE_RATE, 16_000)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder for the finished model")
    parser.add_argument("--exp", type=Path, required=True, help="for samples and checkpoints")
    parser.add_argument("--data-dir", type=Path, help="of the corpus; else below $FPSPEECH_DATA")
    parser.add_argument("--init", type=Path, help="start from this model; else from the demo's")
    parser.add_argument(
        "--development", nargs="+", default=(), help="hold out these training speakers, to tune on"
    )
    parser.add_argument("--synthetic", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not (arguments.exp / "training" / "utterances.jsonl").exists():
        try:
            check_engines()
            manifest = arguments.exp / "training.jsonl"
            write_training_manifest(manifest, arguments.data_dir)
        except (RuntimeError, ManifestError) as error:
            parser.error(str(error))
        write_stores(manifest, arguments.exp, arguments.synthetic, arguments.development)

    model = Wav2Vec2ForCTC.from_pretrained(arguments.init or demo_model())
    options = Training(
        steps=arguments.steps,
        batch_seconds=32.0,
        peak_learning_rate=arguments.learning_rate,
        longest_padding=0.4,
        seed=arguments.seed,
    )
    training = AudioStore(arguments.exp / "training")
    validation = AudioStore(arguments.exp / "validation")
    train(model, training, validation, options, arguments.exp)
    save_base_model(model, arguments.model)
    write_generic(arguments.model, arguments.exp / "training.jsonl", arguments.development)


def write_generic(model: Path, manifest: Path, but: Sequence[str]) -> None:
    """What the features are like for the speakers it was trained on, beside its weights."""
    heard = [
        Utterance(each.id, manifest.parent / each.audio, each.speaker)
        for each in read_manifest(manifest)
        if each.speaker not in but
    ]
    found = measure_generic(
        load_speech_model(model, device="cpu"), at_most(in_turns(heard), GENERIC_MINUTES)
    )
    found.save(model / BESIDE_MODEL)


if __name__ == "__main__":
    main()
