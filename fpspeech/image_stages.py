"""The stages of a recipe for photos; what a stage has written, it does not make again."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fpspeech.corpora.images import Photo, PhotosError, UnusablePhoto, fingerprint
from fpspeech.evaluate_images import Scene, answer
from fpspeech.evaluation import percentage
from fpspeech.experiment import amount
from fpspeech.image_controls import (
    CALIBRATIONS,
    adapted_to,
    control_systems,
    personal_system,
    put_in_force,
)
from fpspeech.image_report import write_image_report
from fpspeech.image_results import (
    DENSE_SYSTEM,
    OWN,
    RESULT,
    ImageResult,
    ImageSystem,
    read_image_result,
    write_image_result,
)
from fpspeech.images import make_personal
from fpspeech.looking import Looked, Watcher, look_at
from fpspeech.methods import pruning_of
from fpspeech.models import ImageModel, load_image_model
from fpspeech.personal import SETTINGS, Personal, Recordings
from fpspeech.personalize_speech import select_layers_of
from fpspeech.pruning import Selection, products_for, sparsity_of
from fpspeech.recipe import Recipe
from fpspeech.recipe_file import RecipeError
from fpspeech.recipe_push import Hub
from fpspeech.recipe_stages import LAST, Say, StagedRun, require_stages, run_module, silently
from fpspeech.user_photos import UserPhotos


def run_image_recipe(
    recipe: Recipe,
    stage: int = 0,
    stop_stage: int = LAST,
    overrides: Mapping[str, Any] | None = None,
    *,
    say: Say = silently,
    hub: Hub | None = None,
) -> Path:
    """Runs the stages from `stage` to `stop_stage` and returns the experiment's folder.

    overrides: values in the place of the recipe's, and `users`: the names of those to measure,
    by default all; None changes nothing. hub: in the place of the Hugging Face Hub. Raises
    RecipeError for what cannot be run, and the errors of photos, models and pruning.
    """
    require_stages(stage, stop_stage)
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    users = given.pop("users", None)
    run = _Run(recipe.overruled(given), users, frozenset(given), say, hub)
    return run.run(stage, stop_stage)


class _Run(StagedRun[Recipe]):
    def __init__(
        self,
        recipe: Recipe,
        users: Sequence[str] | None,
        overruled: frozenset[str],
        say: Say,
        hub: Hub | None,
    ):
        if recipe.exp is None:
            raise RecipeError("the recipe names no folder to write: give exp, or --exp")
        super().__init__(recipe, recipe.exp, overruled, say, hub)
        self.users = list(users or recipe.users)
        for user in self.users:
            recipe.user(user)
        self.photos = UserPhotos(recipe)
        self._watcher = Watcher(skipped=lambda skipped, message: say(f"skipped {message}"))
        # Of the user, and of whose photos, that came last.
        self._looked: tuple[tuple[str, str], Looked] | None = None
        self._measured: tuple[str, tuple[list[Photo], list[Photo], Recordings]] | None = None

    def facts(self) -> dict[str, Any]:
        """The same photos, users and way to prune."""
        names = "photos adapt test test_share outputs users pruning exclude components batch_size"
        names += " batch_norm output_prior forgetting_photos seed"
        content = self.recipe.model_dump(mode="json", warnings=False)
        now = {name.replace("_", " "): content[name] for name in names.split() if name in content}
        if self.recipe.data_dir is not None:
            now["data_dir"] = str(Path(self.recipe.data_dir).resolve())
        return now

    def require_prepared(self) -> None:
        """Raises RecipeError without a manifest."""
        if not self.exp.manifest.exists():
            raise RecipeError(f"{self.exp.manifest} does not exist: run stage 0")

    def prepare(self) -> None:
        """Stage 0: the photos and the base model, where the recipe makes them; the manifest.

        The manifest has a line a user and photo, labels on the test side alone.
        """
        recipe, path = self.recipe, self.exp.manifest
        if recipe.data_from is not None and "data_dir" not in self._overruled:
            where = recipe.data_dir or ""
            if not path.exists() or not Path(where).is_dir():
                run_module(recipe.data_from, where, self.exp.folder, None, self._say)
        if self.makes_model:
            self.make_model(recipe.data_dir)
        if path.exists():
            self._say(f"{path} is there")
            return
        lines = []
        for user in recipe.users:
            for split, photos in (
                ("adapt", self.photos.adapt(user)),
                ("test", self.photos.test(user)),
            ):
                for photo in photos:
                    line = {"user": user, "split": split, "id": photo.id}
                    line |= {"label": photo.label} if photo.label is not None else {}
                    lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.tmp")
        draft.write_text("".join(lines), encoding="utf-8")
        draft.replace(path)
        self._say(f"wrote {path}: {len(recipe.users)} users, {len(lines)} photos")

    def dense(self) -> None:
        """Stage 1: the base model on every user's photos."""
        for user in self.users:
            if self._is_missing(user, DENSE_SYSTEM):
                self._measure(user, DENSE_SYSTEM, 0.0)

    def personalize(self) -> None:
        """Stage 2: a personal model of every user at every sparsity, measured."""
        recipe = self.recipe
        for user in self.users:
            folders = {each: self.exp.personal(user, each) for each in recipe.sparsity}
            missing = [each for each in recipe.sparsity if not (folders[each] / SETTINGS).exists()]
            if missing:
                self._make_personal(user, missing)
            for sparsity in recipe.sparsity:
                system = personal_system(recipe, sparsity)
                if self._is_missing(user, system):
                    personal = Personal.load(folders[sparsity])
                    with personal.apply(self.model):
                        self._measure(user, system, personal.report["sparsity"])

    def controls(self) -> None:
        """Stage 3: other methods, other photos and other ways with BatchNorm."""
        for user in self.users:
            for system in control_systems(self.recipe):
                if not self._is_missing(user, system):
                    continue
                looked = self._look(user, system.calibration)
                if looked is None:
                    continue  # there are no photos of other classes
                adapted = adapted_to(self.model, self._selection, looked, self.recipe, system)
                pruned = [layer.name for layer in self._selection.layers]
                masks = {name: mask for name, mask in adapted.masks.items() if name in pruned}
                with put_in_force(self.model, adapted):
                    self._measure(user, system, sparsity_of(masks) if masks else 0.0)

    def report(self) -> None:
        """Stage 4: tables over everything measured so far of the users."""
        recipe = self.recipe
        systems = [DENSE_SYSTEM, *(personal_system(recipe, each) for each in recipe.sparsity)]
        systems += control_systems(recipe)
        results = []
        for user in self.users:
            for system in systems:
                folder = self.exp.result(user, system.folder_name)
                if system == DENSE_SYSTEM and not (folder / RESULT).exists():
                    raise RecipeError(f"{folder}: expected a result, found none: run stage 1")
                if (folder / RESULT).exists():
                    results.append(read_image_result(folder))
        model = self.exp.settings().get("model", recipe.model)
        method = personal_system(recipe, 0.0).method
        folder = self.exp.folder / "report"
        write_image_report(folder, results, model=model, personal_method=method, seed=recipe.seed)
        self._say(f"wrote {folder}")

    def to_push(self) -> dict[str, Path]:
        """By user, as a number, and sparsity."""
        return {
            f"user-{number:03d}/{amount(sparsity)}": self.exp.personal(user, sparsity)
            for number, user in enumerate(self.recipe.users, start=1)
            if user in self.users
            for sparsity in self.recipe.sparsity
        }

    @cached_property
    def model(self) -> ImageModel:
        """The base model, loaded when something is to be measured."""
        recipe = self.recipe
        return load_image_model(recipe.model, revision=recipe.revision, device=recipe.device)

    @cached_property
    def _selection(self) -> Selection:
        return select_layers_of(self.model, self.recipe.config())

    def _to_measure(self, user: str) -> tuple[list[Photo], list[Photo], Recordings]:
        """A user's test photos, photos of other classes, and what of them may not be tested on."""
        if self._measured is None or self._measured[0] != user:
            seen = []
            for photo in self.photos.adapt(user):
                try:
                    seen.append(fingerprint(photo))
                except UnusablePhoto:
                    continue  # is not looked at either
            found = (self.photos.test(user), self.photos.others(user), Recordings.of(seen))
            self._measured = (user, found)
        return self._measured[1]

    def _measure(self, user: str, system: ImageSystem, reached: float) -> None:
        """Has the model as it is now answer the user's test photos, and writes the result."""
        started = time.perf_counter()
        test, others, seen = self._to_measure(user)
        outputs = self.photos.outputs(self.model.labels)
        classes = tuple(sorted({outputs[name] for name in self.photos.classes_of(user)}))

        def answers(photos: Sequence[Photo]) -> Scene:
            size = self.recipe.config().batch_size
            return answer(self.model, photos, outputs, seen, batch_size=size, watcher=self._watcher)

        mine, rest = answers(test), answers(others)
        if not mine.labels:
            raise PhotosError(
                f"{user}: nothing to measure on: of {len(test)} test photos {mine.already_seen} "
                f"were used to adapt and {len(mine.skipped)} cannot be used"
            )
        among_user = np.asarray(classes)[mine.logits[:, list(classes)].argmax(1).numpy()]
        result = ImageResult(
            user,
            system,
            reached,
            len(self.model.labels),
            classes,
            mine.labels,
            tuple(mine.logits.argmax(1).tolist()),
            tuple(among_user.tolist()),
            rest.labels,
            tuple(rest.logits.argmax(1).tolist()),
            {
                "already_seen": mine.already_seen,
                "unusable": len(mine.skipped),
                "wall_seconds": round(time.perf_counter() - started, 3),
            },
        )
        write_image_result(self.exp.result(user, system.folder_name), result)
        zeros = f" at {system.sparsity:.0%} zeros" if system.sparsity else ""
        how = ", ".join(each for each in (system.calibration, system.batch_norm) if each)
        right = percentage(1 - float(result.wrong_all.mean()))
        self._say(f"{user}: {system.title}{zeros}{f' ({how})' if how else ''}: {right} right")

    def _is_missing(self, user: str, system: ImageSystem) -> bool:
        return not (self.exp.result(user, system.folder_name) / RESULT).exists()

    def _make_personal(self, user: str, sparsities: Sequence[float]) -> None:
        """Personal models from looking at the user's photos once."""
        started = time.perf_counter()
        looked = self._look(user, OWN)
        assert looked is not None  # only photos of others may be none
        seconds = time.perf_counter() - started
        for sparsity in sparsities:
            self._say(f"{user}: pruning to {sparsity:.0%} zeros")
            config = self.recipe.config(sparsity=sparsity)
            personal = make_personal(self.model, self._selection, looked, config, seconds=seconds)
            personal.save(self.exp.personal(user, sparsity))

    def _look(self, user: str, calibration: str) -> Looked | None:
        """One look at photos that serves every method and sparsity; None where there are none."""
        key = (user, calibration)
        if self._looked is not None and self._looked[0] == key:
            return self._looked[1]
        photos = self.photos.adapt(user)
        if calibration != OWN:
            own = CALIBRATIONS[calibration]
            photos = self.photos.control(user, len(photos), with_own_classes=own)
            if not photos:
                return None
        config = self.recipe.config()
        products = products_for(self._selection.layers, config.pruning)
        for method in self.recipe.methods:
            products |= products_for(self._selection.layers, pruning_of(method, config.pruning))
        looked = look_at(
            self.model,
            self._selection,
            photos,
            products=products,
            product_stride=config.pruning.product_stride,
            batch_size=config.batch_size,
            watcher=self._watcher,
        )
        self._looked = (key, looked)
        return looked
