"""A random ResNet in Hugging Face format, and pictures to show it."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")


def write_tiny_resnet(
    folder: Path, layer_type: str = "basic", processor: dict | None = None
) -> Path:
    """A random classifier of six classes, with BatchNorm moments that are not zero and one."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=4,
        hidden_sizes=[8, 16],
        depths=[1, 2],
        layer_type=layer_type,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: number for number, name in enumerate(CLASSES)},
    )
    network = ResNetForImageClassification(config)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.05, 0.5)
    network.save_pretrained(folder)
    settings = processor or {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_pct": 0.875,
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def picture(kind: int, seed: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """Noise around a colour and stripes that say what kind it is."""
    generator = np.random.default_rng(1000 * kind + seed)
    rows = np.arange(size[1])[:, None, None]
    stripes = np.sin(rows * (kind + 1) / 3) * 60
    colour = np.random.default_rng(kind).uniform(60, 200, 3)
    noise = generator.normal(0, 25, (size[1], size[0], 3))
    return Image.fromarray(np.clip(colour + stripes + noise, 0, 255).astype(np.uint8))


def write_photos(folder: Path, each: int = 6) -> Path:
    """A folder of photos for each class, PNG and JPEG."""
    for kind, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            suffix = "png" if number % 2 else "jpg"
            picture(kind, number).save(folder / name / f"{number}.{suffix}")
    return folder
