"""A recipe for speech: from a corpus to a table, stage by stage, each passed over once it is done.

The file is YAML, checked before anything runs. Paths are relative to the folder the command runs
in. Everything is written into the experiment's folder `exp`: `manifest.jsonl`, `personal/SPEAKER`
(personal models), `results/SPEAKER` (with transcripts) and `report`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fpspeech.config import Config
from fpspeech.corpora import find_corpus
from fpspeech.default_methods import METHODS
from fpspeech.evaluation import text_normalizer
from fpspeech.methods import OWN, calibration_of, config_of
from fpspeech.pruning import PruningConfig
from fpspeech.recipe import Name, Section
from fpspeech.recipe_file import Module, distinct, read_yaml, validated


class CorpusSection(Section):
    """Which corpus: its name, where it is, and the options of its reader.

    data_dir: by default below $FPSPEECH_DATA. download: get it where it is not found, and
    data_dir does not say where. data_from: a module of the recipes that makes data_dir.
    """

    name: str
    data_dir: str | None = None
    download: bool = False
    data_from: Module | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _somewhere(self) -> CorpusSection:
        if self.data_from is not None and self.data_dir is None:
            raise ValueError("data_from makes data_dir: say where that is")
        return self

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return find_corpus(name).name


class PruningSection(Section):
    """What all methods have in common; see `PruningConfig`, whose defaults hold."""

    group: str | None = None
    ridge: float | None = None
    cap: float | None = None
    product_stride: int | None = None
    order: str | None = None


class SpeechRecipe(Section):
    """A whole recipe.

    model, revision: the base. model_from: a module of the recipes that trains it into the folder
    `model`, where it is not there yet. exp: the folder to write. speakers: names, or all that have
    recordings on both sides. methods: see `config_of`; the first makes the personal models,
    the others are controls. another_speaker: whether models of one speaker are also measured
    on another. generic: a file of `fpspeech generic`, for methods that need other people's
    numbers. push: a repository of the Hugging Face Hub to upload the personal models to.
    seed: of the split, of draws and of intervals.
    """

    corpus: CorpusSection
    model: str
    revision: str | None = None
    model_from: Module | None = None
    exp: str
    speakers: Literal["all"] | Annotated[list[Name], Field(min_length=1)] = "all"
    sparsity: list[float] = Field(default_factory=lambda: [0.3, 0.5, 0.7], min_length=1)
    methods: list[str] = Field(default_factory=lambda: list(METHODS), min_length=1)
    another_speaker: bool = True
    language: str = "en"
    pruning: PruningSection = PruningSection()
    generic: str | None = None
    exclude: list[str] = Field(default_factory=list)
    batch_size: Annotated[int, Field(ge=1)] = 1
    device: str = "auto"
    push: str | None = None
    seed: int = 0

    @field_validator("sparsity", "methods", "speakers")
    @classmethod
    def _distinct(cls, values: list[Any] | str) -> list[Any] | str:
        return distinct(values) if isinstance(values, list) else values

    @field_validator("language")
    @classmethod
    def _spoken(cls, language: str) -> str:
        text_normalizer(language)
        return language

    @model_validator(mode="after")
    def _agreeing(self) -> SpeechRecipe:
        spoken = self.corpus.options.get("language", self.language)
        if spoken != self.language:
            raise ValueError(
                f"the corpus is read in {spoken!r} (corpus.options.language) but language is "
                f"{self.language!r}: make them agree"
            )
        for method in self.methods:
            if calibration_of(method) != OWN:
                raise ValueError(
                    f"the method {method!r} is not calibrated on the speaker: another_speaker is "
                    "the control that a recipe has for that"
                )
            for sparsity in self.sparsity:
                self.config(method, sparsity)
        return self

    def config(self, method: str, sparsity: float) -> Config:
        """The settings of one method at one sparsity; raises PruningError on bad values."""
        pruning = PruningConfig(
            sparsity=sparsity, seed=self.seed, **self.pruning.model_dump(exclude_none=True)
        )
        config = Config(
            pruning=pruning,
            exclude=tuple(self.exclude),
            batch_size=self.batch_size,
            language=self.language,
        )
        return config_of(method, config)

    def overruled(self, changes: Mapping[str, Any]) -> SpeechRecipe:
        """The recipe with other values, as from the command line; `data_dir` is the corpus'.

        Values that are None change nothing. Raises RecipeError.
        """
        content = self.model_dump(exclude_unset=True)
        given = {name: value for name, value in changes.items() if value is not None}
        if "model" in given and "revision" not in given:
            content.pop("revision", None)  # it was the other model's
        for name, value in given.items():
            if name == "data_dir":
                content["corpus"]["data_dir"] = value
            else:
                content[name] = value
        return _validated(content, "command line")


def read_speech_recipe(path: Path) -> SpeechRecipe:
    """Reads a recipe file; raises RecipeError with everything that is wrong with it, by key."""
    return _validated(read_yaml(path, "model: openai/whisper-tiny.en"), str(path))


def _validated(content: Mapping[str, Any], where: str) -> SpeechRecipe:
    sections: dict[str, type[Section]] = {"corpus": CorpusSection, "pruning": PruningSection}
    return validated(SpeechRecipe, content, where, sections)
