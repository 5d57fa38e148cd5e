"""What the recipes for speech and for images have in common: six stages, run in order.

0 data and manifest (and the base model, where the recipe trains one), 1 dense, 2 personalize, 3
controls, 4 report, 5 push. A stage passes over what it finds done.
"""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Container
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from fpspeech.experiment import Experiment
from fpspeech.models import find_model
from fpspeech.recipe_file import RecipeError
from fpspeech.recipe_push import Hub, push_personal

STAGES = ("data", "dense", "personalize", "controls", "report", "push")
LAST = len(STAGES) - 1
STDERR = 2  # results alone go to standard output

Say = Callable[[str], None]
"""Is told what goes on, a line at a time."""


def silently(line: str) -> None:
    """Says nothing."""


class Staged(Protocol):
    """What every recipe says; see `Recipe` and `SpeechRecipe`."""

    model: str
    revision: str | None
    model_from: str | None
    push: str | None


R = TypeVar("R", bound=Staged)


class StagedRun(ABC, Generic[R]):
    """One recipe in one folder: what is there, and what is still to be made.

    overruled: names of the recipe's values in whose place others were given. hub: in the place of
    the Hugging Face Hub.
    """

    def __init__(
        self, recipe: R, exp: str | Path, overruled: Container[str], say: Say, hub: Hub | None
    ):
        self.recipe = recipe
        self.exp = Experiment(exp)
        self._overruled = overruled
        self._say = say
        self._hub = hub

    def run(self, first: int, last: int) -> Path:
        """Runs the stages from `first` to `last` and returns the experiment's folder."""
        stages = (self.prepare, self.dense, self.personalize, self.controls, self.report, self.push)
        self.settle(with_model=_uses_model(first, last) and not (first == 0 and self.makes_model))
        for number in range(first, last + 1):
            self._say(f"stage {number}: {STAGES[number]}")
            if _uses_model(number, number):  # which stage 0 may have made
                self.require_prepared()
                self.settle(with_model=True)
            self.exp.keep_settings()
            stages[number]()
        self.exp.keep_settings()
        return self.exp.folder

    def settle(self, *, with_model: bool) -> None:
        """Holds the folder to one data set, model and way to prune: results must compare.

        Raises RecipeError where it holds results of others. What adds results (speakers, users,
        methods, sparsities) may differ from run to run.
        """
        self.exp.settle(self.facts() | ({"model": self._model_name} if with_model else {}))

    @property
    def makes_model(self) -> bool:
        """Whether the base model is still to be made, and by this recipe."""
        if self.recipe.model_from is None or "model" in self._overruled:
            return False
        return not (Path(self.recipe.model) / "config.json").is_file()  # written last

    @cached_property
    def _model_name(self) -> str:
        if self.makes_model:
            raise RecipeError(f"{self.recipe.model} is not there yet: run stage 0, which makes it")
        source = find_model(self.recipe.model, self.recipe.revision)
        return f"{source.id} (SHA-256 {source.sha256})"

    def make_model(self, data_dir: str | Path | None) -> None:
        """Runs the module that makes the base model; only where `makes_model`."""
        assert self.recipe.model_from is not None
        module, model = self.recipe.model_from, self.recipe.model
        run_module(module, model, self.exp.folder, data_dir, self._say)

    def push(self) -> None:
        """Stage 5: the personal models to the Hub; nothing without a repository in the recipe."""
        repository = self.recipe.push
        if repository is None:
            self._say("nothing is pushed: the recipe names no repository")
            return
        folders = self.to_push()
        push_personal(repository, folders, self.exp.folder, self._hub)
        self._say(f"{len(folders)} personal models are in {repository}")

    def require_prepared(self) -> None:
        """Raises RecipeError where stage 0 has not made what the others need."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the folder is held to, beside the model."""

    @abstractmethod
    def prepare(self) -> None:
        """Stage 0."""

    @abstractmethod
    def dense(self) -> None:
        """Stage 1."""

    @abstractmethod
    def personalize(self) -> None:
        """Stage 2."""

    @abstractmethod
    def controls(self) -> None:
        """Stage 3."""

    @abstractmethod
    def report(self) -> None:
        """Stage 4."""

    @abstractmethod
    def to_push(self) -> dict[str, Path]:
        """The folders of the personal models, by their paths in the repository."""


def require_stages(first: int, last: int) -> None:
    """Raises RecipeError unless these are stages, the first not after the last."""
    if not 0 <= first <= last <= LAST:
        raise RecipeError(
            f"expected stages among 0 to {LAST} ({', '.join(STAGES)}), the first before the last; "
            f"found {first} to {last}"
        )


def _uses_model(first: int, last: int) -> bool:
    """Whether one of these stages runs the base model."""
    return first <= STAGES.index("controls") and last >= STAGES.index("dense")


def run_module(module: str, target: str, exp: Path, data_dir: str | Path | None, say: Say) -> None:
    """Runs a module of the recipes that makes `target`, as `python -m MODULE TARGET --exp EXP`.

    What it says goes where the errors go. data_dir: passed on where it is known. Raises
    RecipeError where it fails.
    """
    command = [sys.executable, "-m", module, target, "--exp", str(exp)]
    if data_dir is not None:
        command += ["--data-dir", str(data_dir)]
    say(f"{module}: {target}, where it is not there")
    done = subprocess.run(command, stdout=STDERR, check=False)
    if done.returncode:
        raise RecipeError(
            f"{module} failed (exit status {done.returncode}) and {target} was not made: see what "
            "it said, and run from the folder that holds `recipes`"
        )
