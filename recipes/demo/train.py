"""Stage 3 of the demo: the base model, trained from scratch on the synthesised recordings."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from recipes.audio_store import AudioStore
from recipes.base_model import new_base_model, save_base_model
from recipes.ctc_training import Training, train


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "exp", type=Path, help="holds training/ and validation/; checkpoints go here"
    )
    parser.add_argument("model", type=Path, help="folder for the finished model")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    model = new_base_model(arguments.seed)
    training = AudioStore(arguments.exp / "training")
    validation = AudioStore(arguments.exp / "validation")
    options = Training(steps=arguments.steps, seed=arguments.seed)
    train(model, training, validation, options, arguments.exp)
    save_base_model(model, arguments.model)


if __name__ == "__main__":
    main()
