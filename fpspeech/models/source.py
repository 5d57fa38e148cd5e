"""Where a base model comes from: a local folder or a Hugging Face Hub id, pinned by a hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

_SETTINGS = ("*.json", "*.txt", "*.model")


class ModelError(ValueError):
    """A base model that cannot be found, read or personalized."""


@dataclass(frozen=True)
class Source:
    """A base model's files.

    id: the Hub id, or the name (not the path) of a local folder. revision: the Hub commit.
    sha256: of the weight files. folder: where they are now; never written to an artifact.
    """

    id: str
    revision: str | None
    sha256: str
    folder: Path = field(repr=False)

    def config(self) -> dict[str, Any]:
        """The model's `config.json`; raises ModelError when there is none to read."""
        return _config(self.folder)

    @property
    def weight_bytes(self) -> int:
        """Size of the weight files in bytes."""
        return sum(path.stat().st_size for path in _weight_files(self.folder))


def find_model(model: str | Path, revision: str | None = None) -> Source:
    """Finds a base model: a folder in Hugging Face format, else a Hub id (downloaded once).

    Raises ModelError, saying what was looked for, when there is neither.
    """
    folder = Path(model)
    if folder.is_dir():
        _config(folder)
        return Source(folder.resolve().name, None, _hash(folder), folder)
    name = str(model)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or folder.is_file():
        raise ModelError(
            f"{name} is no folder: expected a folder in Hugging Face format (config.json, "
            "model.safetensors) or a Hub id such as facebook/wav2vec2-base-960h"
        )
    folder = _download(name, revision)
    return Source(name, folder.name, _hash(folder), folder)


def _download(name: str, revision: str | None) -> Path:
    try:
        folder = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=[*_SETTINGS, "model*.safetensors"]
            )
        )
        if not list(folder.glob("*.safetensors")):
            # Older checkpoints have no safetensors; transformers reads these with weights_only.
            snapshot_download(
                name, revision=revision, allow_patterns=[*_SETTINGS, "pytorch_model*.bin"]
            )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"found no folder {name!r} here, and it could not be had from the Hugging Face Hub "
            f"({type(error).__name__}): check the name and the network, or give the folder of a "
            "downloaded model"
        ) from error
    return folder


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} has no config.json: expected a model in Hugging Face format, as "
            "save_pretrained writes it"
        ) from None
    except ValueError as error:
        raise ModelError(f"{folder / 'config.json'} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{folder / 'config.json'} holds no object")
    return config


def _weight_files(folder: Path) -> list[Path]:
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        if found := sorted(folder.glob(pattern)):
            return found
    raise ModelError(f"{folder} has no weights: expected model.safetensors")


def _hash(folder: Path) -> str:
    """SHA-256 over the weight files in the order of their names."""
    digest = hashlib.sha256()
    for path in _weight_files(folder):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
