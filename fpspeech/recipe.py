"""A recipe file: which model, whose photos, how to prune. YAML, checked before anything runs.

Paths are relative to the folder the command runs in, like those on the command line. Only what
the file says is set; the defaults are those of `Config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    field_validator,
    model_validator,
)

from fpspeech.config import Config
from fpspeech.corpora.images import PhotoDataset
from fpspeech.methods import pruning_of
from fpspeech.pruning import PruningConfig
from fpspeech.recipe_file import (
    Module,
    RecipeError,
    distinct,
    nearest,
    read_yaml,
    validated,
)

METHODS = ("fine_pruning", "wanda", "magnitude", "random")
"""What a recipe that names no methods measures beside its personal models."""

PICTURE_STRIDE = 1
"""Rows between two that Σxxᵀ is counted at: every 4th of a map 8 high is an edge and one other."""


def _as_text(value: Any) -> Any:
    # A class named 7 or a user named 2026 is a number to YAML.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Name = Annotated[str, BeforeValidator(_as_text)]


def _classes(value: Any) -> tuple[str, ...] | int | None:
    if value is None or (isinstance(value, int) and value > 0 and value is not True):
        return value
    names = [_as_text(each) for each in value] if isinstance(value, (list, tuple)) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"expected names of classes, or how many to draw, found {value!r}")
    return tuple(names)


def _outputs(value: Any) -> dict[str, str] | Literal["in_order"]:
    if value == "in_order":
        return "in_order"
    pairs = {_as_text(k): _as_text(v) for k, v in value.items()} if isinstance(value, dict) else {}
    if not pairs or not all(isinstance(part, str) for pair in pairs.items() for part in pair):
        raise ValueError(f"expected {{class: label of the model}} or in_order, found {value!r}")
    return pairs


Classes = Annotated[tuple[str, ...] | int | None, PlainValidator(_classes)]
Outputs = Annotated[dict[str, str] | Literal["in_order"], PlainValidator(_outputs)]


class Section(BaseModel):
    """A part of a recipe file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Photos(Section):
    """Where photos are: a folder with one folder a class, or a Hugging Face dataset.

    name, data_dir, split, revision, image, label: of a dataset, see `PhotoDataset`.
    limit_per_class: at most so many photos of each class.
    """

    folder: str | None = None
    dataset: str | None = None
    split: str | None = None
    name: str | None = None
    data_dir: str | None = None
    revision: str | None = None
    image: str = "image"
    label: str = "label"
    limit_per_class: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Photos:
        if (self.folder is None) == (self.dataset is None):
            raise ValueError("expected either folder or dataset")
        if self.dataset is not None and self.split is None:
            raise ValueError("expected the split of the dataset, such as split: validation")
        if self.folder is not None:
            given = self.model_fields_set - {"folder", "limit_per_class"}
            if given:
                raise ValueError(f"{min(given)} belongs to a dataset; a folder has none")
        return self

    @property
    def place(self) -> str:
        """What to call it in a message."""
        return self.folder or self.dataset or ""

    def open(self, root: str | None = None) -> PhotoDataset | Path:
        """The folder, below `root` where that is given, or the dataset."""
        if self.dataset is None:
            return Path(root or "", self.folder or "")
        return PhotoDataset(
            self.dataset,
            self.split or "",
            name=self.name,
            data_dir=self.data_dir,
            revision=self.revision,
            image=self.image,
            label=self.label,
        )


class User(Section):
    """Whose photos: those of some classes of the corpus, or a folder of their own.

    classes: names, or how many to draw (`draw`: which draw). photos: a folder of the user's own
    photos, without labels, to adapt on; classes then only say what is measured.
    """

    classes: Classes = None
    draw: int = 0
    photos: str | None = None

    @model_validator(mode="after")
    def _someone(self) -> User:
        if self.classes is None and self.photos is None:
            raise ValueError("expected classes (names, or how many to draw) or photos (a folder)")
        if "draw" in self.model_fields_set and not isinstance(self.classes, int):
            raise ValueError("draw goes with a number of classes to draw, such as classes: 5")
        return self


class Pruning(Section):
    """What to prune and how much; see `PruningConfig`, whose defaults hold."""

    sparsity: float | None = None
    score: str | None = None
    group: str | None = None
    cap: float | None = None
    update: str | None = None
    ridge: float | None = None
    product_stride: int | None = None
    order: str | None = None


class Recipe(Section):
    """A whole recipe.

    model, revision: the base. data_dir: where the folders of photos are. model_from, data_from:
    modules of the recipes that train the model into the folder `model`, and that fill data_dir,
    where they are not there yet. photos: all photos, of which `test_share` of each class test; or
    adapt and test: photos apart. outputs: which output of the model each class is, as
    {class: label}, or "in_order" where classes, sorted by name or in the dataset's order, and
    outputs agree; by default by name. users: by name. forgetting_photos: how many photos of other
    classes to measure on. seed: of splits, draws and intervals. pruning says how personal models
    are made. For `fpspeech run` also: exp, the folder to write; sparsity, of the personal models
    and all else that is measured; methods, the others to measure, see `pruning_of`; push, a
    repository of the Hugging Face Hub for the personal models.
    """

    model: str
    revision: str | None = None
    model_from: Module | None = None
    data_dir: str | None = None
    data_from: Module | None = None
    photos: Photos | None = None
    adapt: Photos | None = None
    test: Photos | None = None
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    outputs: Outputs = Field(default_factory=dict)
    users: Annotated[dict[Name, User], Field(min_length=1)]
    pruning: Pruning = Pruning()
    exclude: list[str] | None = None
    components: dict[str, float] | None = None
    batch_size: int | None = None
    batch_norm: Literal["match", "keep"] | None = None
    output_prior: Literal["none", "em"] | None = None
    forgetting_photos: Annotated[int, Field(ge=0)] = 0
    exp: str | None = None
    sparsity: list[float] = Field(default_factory=lambda: [0.3, 0.5, 0.7], min_length=1)
    methods: list[str] = Field(default_factory=lambda: list(METHODS))
    device: str = "auto"
    push: str | None = None
    seed: int = 0

    @field_validator("sparsity", "methods")
    @classmethod
    def _distinct(cls, values: list[Any]) -> list[Any]:
        return distinct(values)

    @model_validator(mode="after")
    def _methods_fit(self) -> Recipe:
        for method in self.methods:
            for sparsity in self.sparsity:
                replace(pruning_of(method, PruningConfig()), sparsity=sparsity)
        if self.data_from is not None and self.data_dir is None:
            raise ValueError("data_from fills data_dir: say where that is")
        return self

    @model_validator(mode="after")
    def _photos_once(self) -> Recipe:
        if self.photos is not None and (self.adapt is not None or self.test is not None):
            raise ValueError("expected either photos, split by test_share, or adapt and test")
        if "test_share" in self.model_fields_set and self.photos is None:
            raise ValueError("test_share splits photos; adapt and test are apart already")
        return self

    def config(self, *, output_prior: str | None = None, **changes: Any) -> Config:
        """The settings; output_prior and changes (as in `Pruning`) overrule the file.

        Unlike elsewhere, Σxxᵀ is counted at every position by default, see `PICTURE_STRIDE`.
        Raises PruningError on values out of range.
        """
        pruning: dict[str, Any] = self.pruning.model_dump(exclude_none=True)
        pruning |= {name: value for name, value in changes.items() if value is not None}
        given: dict[str, Any] = {
            "batch_size": self.batch_size,
            "batch_norm": self.batch_norm,
            "output_prior": output_prior or self.output_prior,
        }
        given = {name: value for name, value in given.items() if value is not None}
        return Config(
            pruning=PruningConfig(
                **{"seed": self.seed, "product_stride": PICTURE_STRIDE, **pruning}
            ),
            exclude=tuple(self.exclude or ()),
            components=tuple((self.components or {}).items()),
            **given,
        )

    def overruled(self, changes: Mapping[str, Any]) -> Recipe:
        """The recipe with other values, as from the command line; raises RecipeError."""
        content = self.model_dump(exclude_unset=True, warnings=False)
        if "model" in changes and "revision" not in changes:
            content.pop("revision", None)  # it was the other model's
        return _validated(content | dict(changes), "command line")

    def user(self, name: str) -> User:
        """A user by name; raises RecipeError, with the nearest one, where there is none."""
        if name in self.users:
            return self.users[name]
        raise RecipeError(
            f"the recipe has no user {name!r}{nearest(name, self.users)}; its users are "
            f"{', '.join(self.users)}"
        )


assert set(Pruning.model_fields) < {each.name for each in fields(PruningConfig)}


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe file; raises RecipeError with everything that is wrong with it, by key."""
    return _validated(read_yaml(path, "model: microsoft/resnet-50"), str(path))


def _validated(content: Mapping[str, Any], where: str) -> Recipe:
    sections: dict[str, type[Section]] = {
        "photos": Photos,
        "adapt": Photos,
        "test": Photos,
        "users": User,
        "pruning": Pruning,
    }
    return validated(Recipe, content, where, sections)
