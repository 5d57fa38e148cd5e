"""ResNet for image classification: `microsoft/resnet-18` to `-152` and others of the kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, ResNetForImageClassification

from fpspeech.models.image_model import ImageModel
from fpspeech.models.source import ModelError, Source

if TYPE_CHECKING:
    from PIL.Image import Image

_CHANNELS = 3  # pictures come in RGB


def load_resnet(source: Source, device: torch.device | str = "cpu") -> ImageModel:
    """Loads a `ResNetForImageClassification` in float32, and its image processor.

    Pictures are resized, cropped and normalised by the processor's own numbers with Pillow, so
    torchvision is not needed, and gives no other results where it is installed. Raises ModelError
    when the checkpoint is no classifier of RGB pictures or has no processor.
    """
    loaded: Any = ResNetForImageClassification.from_pretrained(
        source.folder, dtype=torch.float32, output_loading_info=True
    )
    network, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{source.id} lacks weights of a ResNetForImageClassification "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): expected a "
            "checkpoint with a classifier, such as microsoft/resnet-50"
        )
    config = network.config
    if config.num_channels != _CHANNELS:
        raise ModelError(
            f"{source.id} takes pictures of {config.num_channels} channels: expected {_CHANNELS}"
        )
    try:
        processor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            source.folder, backend="pil"
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{source.id} has no image processor that loads ({error}): expected "
            "preprocessor_config.json beside the weights"
        ) from error

    def preprocess(pictures: Sequence[Image]) -> Tensor:
        pixels: Tensor = processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        return pixels

    def save(changed: nn.Module, folder: Path) -> None:
        changed.save_pretrained(folder)  # type: ignore[operator]
        processor.save_pretrained(folder)

    return ImageModel(
        network.to(device),
        preprocess,
        labels=[str(config.id2label[index]) for index in range(config.num_labels)],
        source=source,
        family="resnet",
        exclusions={
            "resnet.embedder.embedder.convolution": (
                "first convolution: it reads the picture itself"
            ),
            "classifier.1": "output layer",
        },
        components={
            f"stage{number}": (f"resnet.encoder.stages.{number - 1}.*",)
            for number in range(1, len(config.depths) + 1)
        },
        save=save,
    )
