"""The personal model: one bit a weight beside a base model, saved, loaded, applied and merged.

The folder holds `fpspeech.json` (settings, base model, hashed recordings), `mask.safetensors`
(packed bits), `values.safetensors` where an update changed more than the mask says,
`report.json` and `README.md` (the model card). It holds no audio, no transcript,
no name of a speaker and no path of the machine it was made on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fpspeech.config import Config
from fpspeech.model_card import merged_card, personal_card
from fpspeech.models import PretrainedModel
from fpspeech.output_folder import whole_folder
from fpspeech.pruning import Applied, PrunableLayer, apply_masks, pack, unpack

FORMAT = 1
SETTINGS, REPORT, CARD = "fpspeech.json", "report.json", "README.md"
MASK, VALUES = "mask.safetensors", "values.safetensors"
_KEPT = "kept:"  # before a layer's name in the values file


class PersonalError(ValueError):
    """A personal model that cannot be read, or does not belong to the base model at hand."""


@dataclass(frozen=True)
class Base:
    """Which base model a personal model belongs to.

    id: the Hub id, or the name of the local folder. sha256: of the weight files.
    """

    id: str
    revision: str | None
    sha256: str
    family: str

    @classmethod
    def of(cls, model: PretrainedModel) -> Base:
        """The base that `model` was loaded from."""
        source = model.source
        return cls(source.id, source.revision, source.sha256, model.family)


@dataclass(frozen=True)
class Recordings:
    """The recordings that a personal model was adapted on, as salted hashes of their files.

    The salt is a hash over all of them, so equal recordings hash differently in two artifacts.
    """

    salt: str
    hashes: frozenset[str]

    @classmethod
    def of(cls, fingerprints: Iterable[str]) -> Recordings:
        """Hashes the fingerprints (SHA-256 of each file)."""
        prints = sorted(fingerprints)
        salt = hashlib.sha256("".join(prints).encode()).hexdigest()[:32]
        return cls(salt, frozenset(_salted(salt, each) for each in prints))

    def holds(self, fingerprint: str) -> bool:
        """Whether the recording with this fingerprint is among them."""
        return _salted(self.salt, fingerprint) in self.hashes


def _salted(salt: str, fingerprint: str) -> str:
    return hashlib.sha256(f"{salt}{fingerprint}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Personal:
    """One speaker's masks for one base model.

    masks: by layer name, True where the weight is kept, shape (groups, outputs, inputs).
    kept: what an update made of the kept weights, by layer name, float16 in row-major order.
    values: what it changed beside them, by names of the state dict. Both are often empty.
    report: what was done and measured, plain JSON values. versions: of the libraries.
    """

    base: Base
    config: Config
    masks: Mapping[str, Tensor] = field(repr=False)
    recordings: Recordings = field(repr=False)
    seconds: float
    report: Mapping[str, Any] = field(repr=False)
    versions: Mapping[str, str] = field(repr=False)
    values: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    kept: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def apply(self, model: PretrainedModel) -> Applied:
        """Sets the pruned weights of the base model in memory to zero, the kept as updated.

        Use as a context manager, or call `restore()` on the result: the base is back bit for bit.
        Raises PersonalError when `model` is not the base it was made from.
        """
        if model.source.sha256 != self.base.sha256:
            raise PersonalError(
                f"this personal model belongs to the base {self.base.id} (SHA-256 "
                f"{self.base.sha256[:12]}...), found {model.source.id} "
                f"({model.source.sha256[:12]}...): load that base"
            )
        modules = dict(model.network.named_modules())
        missing = [name for name in self.masks if name not in modules]
        if missing:
            raise PersonalError(f"the base model has no layer named {missing[0]}")
        layers = [PrunableLayer(name, modules[name]) for name in self.masks]
        return apply_masks(
            layers, self.masks, network=model.network, values=self.values, kept=self.kept
        )

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Writes the personal model folder; it appears whole or not at all."""
        settings = {
            "format": FORMAT,
            "base": asdict(self.base),
            "config": self.config.as_json(),
            "versions": dict(self.versions),
            "seconds": round(self.seconds, 3),
            "recordings": {
                "salt": self.recordings.salt,
                "hashes": sorted(self.recordings.hashes),
            },
            "layers": {name: list(mask.shape) for name, mask in self.masks.items()},
        }
        with whole_folder(folder, overwrite=overwrite) as draft:
            save_file({name: pack(mask) for name, mask in self.masks.items()}, draft / MASK)
            changed = {f"{_KEPT}{name}": weights for name, weights in self.kept.items()}
            changed |= self.values
            if changed:
                save_file(changed, draft / VALUES)
            _write_json(draft / SETTINGS, settings)
            _write_json(draft / REPORT, dict(self.report))
            card = personal_card(asdict(self.base), self.config, self.report)
            (draft / CARD).write_text(card, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Personal:
        """Reads a personal model folder; raises PersonalError, naming the file, when it cannot."""
        settings = _read_json(folder / SETTINGS)
        if settings.get("format") != FORMAT:
            raise PersonalError(
                f"{folder / SETTINGS} is of format {settings.get('format')!r}, this version reads "
                f"{FORMAT}: update fpspeech, or personalize again"
            )
        packed = _read_tensors(folder / MASK)
        changed = _read_tensors(folder / VALUES) if (folder / VALUES).exists() else {}
        if packed.keys() != settings["layers"].keys():
            odd = sorted(packed.keys() ^ settings["layers"].keys())
            raise PersonalError(
                f"{folder / MASK} and {folder / SETTINGS} disagree about {odd[0]}: "
                "the folder is damaged, personalize again"
            )
        try:
            return cls(
                base=Base(**settings["base"]),
                config=Config.from_json(settings["config"]),
                masks={
                    name: unpack(packed[name], tuple(shape))
                    for name, shape in settings["layers"].items()
                },
                recordings=Recordings(
                    settings["recordings"]["salt"], frozenset(settings["recordings"]["hashes"])
                ),
                seconds=settings["seconds"],
                report=_read_json(folder / REPORT),
                versions=settings["versions"],
                values={n: v for n, v in changed.items() if not n.startswith(_KEPT)},
                kept={n.removeprefix(_KEPT): v for n, v in changed.items() if n.startswith(_KEPT)},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PersonalError(f"{folder / SETTINGS} is damaged: {error}") from error


def merge(
    personal: Personal, model: PretrainedModel, folder: Path, *, overwrite: bool = False
) -> None:
    """Writes a stock Hugging Face folder whose plain `from_pretrained` gives the personal model.

    Every weight keeps its name, and the dtype it has in `model` (float32), so that the logits
    are identical. The base model is restored afterwards.
    """
    with whole_folder(folder, overwrite=overwrite) as draft, personal.apply(model):
        model.save_pretrained(draft)
        card = merged_card(asdict(personal.base), personal.config, personal.report)
        (draft / CARD).write_text(card, encoding="utf-8")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise PersonalError(f"{path} cannot be read: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PersonalError(
            f"{path} does not exist: expected a folder that `fpspeech personalize` wrote"
        ) from None
    except (ValueError, OSError) as error:
        raise PersonalError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise PersonalError(f"{path} holds no JSON object")
    return value
