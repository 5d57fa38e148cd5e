"""Stage 0 of the demo: the base model, trained from scratch on synthesised recordings."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from recipes.audio_store import AudioStore
from recipes.base_model import new_base_model, save_base_model
from recipes.ctc_training import Training, train
from recipes.demo.corpus import write_training_corpus, write_validation_corpus
from recipes.demo.generic import write_generic
from recipes.speech_synthesis import check_engines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder for the finished model")
    parser.add_argument("--exp", type=Path, required=True, help="for samples and checkpoints")
    parser.add_argument("--data-dir", type=Path, help="not used: nobody of the demo trains it")
    parser.add_argument("--training-utterances", type=int, default=24_000)
    parser.add_argument("--validation-utterances", type=int, default=200)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    if not (arguments.exp / "training" / "utterances.jsonl").exists():
        try:
            check_engines()
        except RuntimeError as error:
            parser.error(str(error))
        write_validation_corpus(arguments.exp / "validation", arguments.validation_utterances)
        write_training_corpus(arguments.exp / "training", arguments.training_utterances)

    torch.set_num_threads(arguments.threads)
    model = new_base_model(arguments.seed)
    training = AudioStore(arguments.exp / "training")
    validation = AudioStore(arguments.exp / "validation")
    options = Training(steps=arguments.steps, seed=arguments.seed)
    train(model, training, validation, options, arguments.exp)
    save_base_model(model, arguments.model)
    write_generic(arguments.model)


if __name__ == "__main__":
    main()
