"""Stage 0 of the digits: a small ResNet from scratch. Training with labels, before any user."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification

from fpspeech.corpora.images import decode, photos_in_folder
from fpspeech.models import load_image_model
from fpspeech.output_folder import whole_folder

CLASSES = [str(digit) for digit in range(10)]
PROCESSOR = {
    "image_processor_type": "ConvNextImageProcessor",  # as microsoft/resnet-* have it
    "do_resize": True,
    "size": {"shortest_edge": 32},  # pixels; the stem divides by 4
    "crop_pct": 1.0,
    "resample": 2,  # bilinear
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.3, 0.3, 0.3],
    "image_std": [0.35, 0.35, 0.35],
}
LARGEST_SHIFT = 3  # pixels of 32, either way
BATCH = 32


def new_model(seed: int) -> ResNetForImageClassification:
    """About 0.18 million parameters, randomly initialised."""
    torch.manual_seed(seed)
    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[2, 2, 2],
        layer_type="basic",
        num_labels=len(CLASSES),
        id2label=dict(enumerate(CLASSES)),
        label2id={label: number for number, label in enumerate(CLASSES)},
    )
    return ResNetForImageClassification(config)


def train(pictures: Path, folder: Path, epochs: int, rate: float, seed: int) -> None:
    """Trains on the pictures of a folder and writes a stock Hugging Face folder."""
    network = new_model(seed)
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2) + "\n")
    model = load_image_model(folder, device="cpu")  # the preprocessing that users' photos get
    photos = photos_in_folder(pictures)
    pixels = model.preprocess([decode(photo).image for photo in photos])  # (n, 3, 32, 32)
    labels = torch.tensor([CLASSES.index(photo.label or "") for photo in photos])
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(photos) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    network.train()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for chosen in torch.randperm(len(photos), generator=generator).split(BATCH):
            logits = network(_shifted(pixels[chosen], generator)).logits
            loss = F.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        if epoch % 5 == 0 or epoch == epochs:
            print(f"epoch {epoch}: loss {total / len(photos):.4f}", flush=True)
    network.eval()
    network.save_pretrained(folder)


def _shifted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture moved by a few pixels, what comes in repeating the edge."""
    size = pixels.shape[-1]
    padded = F.pad(pixels, [LARGEST_SHIFT] * 4, mode="replicate")
    corners = torch.randint(2 * LARGEST_SHIFT + 1, (len(pixels), 2), generator=generator)
    return torch.stack(
        [
            picture[:, top : top + size, left : left + size]
            for picture, (top, left) in zip(padded, corners.tolist(), strict=True)
        ]
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder for the finished model")
    parser.add_argument("--data-dir", type=Path, required=True, help="holds training/")
    parser.add_argument("--exp", type=Path, help="not used")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with whole_folder(arguments.model) as draft:
        train(
            arguments.data_dir / "training",
            draft,
            arguments.epochs,
            arguments.learning_rate,
            arguments.seed,
        )


if __name__ == "__main__":
    main()
