"""What a recipe for photos measured, as files: one model on one user's test photos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fpspeech.experiment import amount, read_json, write_json
from fpspeech.results import ResultsError

DENSE = "dense"
OWN = "own photos"
RESULT = "result.json"


@dataclass(frozen=True)
class ImageSystem:
    """A model to measure: how it was pruned, on whose photos, and what became of its BatchNorms.

    sparsity: 0 for the dense model, whose other fields are empty. output_prior: "em" where the
    output layer knows the shares of the classes among those photos, of a dense model too.
    """

    method: str
    calibration: str
    batch_norm: str
    sparsity: float
    output_prior: str = "none"

    @property
    def title(self) -> str:
        """What its method is called in a table."""
        return self.method if self.output_prior == "none" else f"{self.method} + prior"

    @property
    def folder_name(self) -> str:
        """What its result is called."""
        whose = self.calibration.replace("'", "").replace(" ", "_")
        prior = "" if self.output_prior == "none" else f"-{self.output_prior}"
        if self.method == DENSE:
            return f"{DENSE}-{whose}{prior}" if prior else DENSE
        norm = self.batch_norm.replace(" ", "_")
        return f"{self.method}-{whose}-{norm}-{amount(self.sparsity)}{prior}"


DENSE_SYSTEM = ImageSystem(DENSE, "", "", 0.0)


@dataclass(frozen=True)
class ImageResult:
    """One model on one user's test photos.

    labels: of each photo the number of the right class. among_all, among_user: the answers, chosen
    among all classes and among `user_classes`. other_labels, others_among_all: the same of photos
    of other classes. facts: what else is worth keeping, plain JSON values.
    """

    user: str
    system: ImageSystem
    reached: float
    classes: int
    user_classes: tuple[int, ...]
    labels: tuple[int, ...] = field(repr=False)
    among_all: tuple[int, ...] = field(repr=False)
    among_user: tuple[int, ...] = field(repr=False)
    other_labels: tuple[int, ...] = field(default=(), repr=False)
    others_among_all: tuple[int, ...] = field(default=(), repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def wrong_all(self) -> NDArray[np.bool_]:
        """Which photos are answered wrong among all classes, shape (photos,)."""
        return np.not_equal(self.among_all, self.labels)

    @property
    def wrong_user(self) -> NDArray[np.bool_]:
        """Which photos are answered wrong among the user's classes, shape (photos,)."""
        return np.not_equal(self.among_user, self.labels)

    @property
    def others_rate(self) -> float | None:
        """Accuracy among all classes on photos of other classes, None without such photos."""
        if not self.other_labels:
            return None
        return float(np.equal(self.others_among_all, self.other_labels).mean())


def write_image_result(folder: Path, result: ImageResult) -> None:
    """Writes a result's file, whole or not at all."""
    write_json(folder / RESULT, asdict(result))


def read_image_result(folder: Path) -> ImageResult:
    """Reads a result's file; raises ResultsError or RecipeError, naming it, when it cannot."""
    value = read_json(folder / RESULT)
    try:
        system = ImageSystem(**value.pop("system"))
        rows = {name: tuple(each) for name, each in value.items() if isinstance(each, list)}
        return ImageResult(**{**value, **rows, "system": system})
    except (KeyError, TypeError) as error:
        raise ResultsError(
            f"{folder / RESULT} cannot be read ({type(error).__name__}: {error}): remove {folder} "
            "and run the stage again"
        ) from error
