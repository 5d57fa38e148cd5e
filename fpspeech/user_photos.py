"""Whose photos a recipe speaks of: those to adapt on, those to test on, those of other classes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from fpspeech.corpora.images import (
    Photo,
    PhotoDataset,
    PhotosError,
    UnusablePhoto,
    draw_classes,
    draw_photos,
    fingerprint,
    limit_photos,
    photos_in_folder,
    require_classes,
    split_photos,
    without_labels,
)
from fpspeech.personal import Personal
from fpspeech.recipe import Photos, Recipe
from fpspeech.recipe_file import RecipeError


class UserPhotos:
    """The photos of each user of a recipe; which are whose depends on ids and the seed alone."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self._listed: dict[Path, list[Photo]] = {}

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """All classes there are to test on: of a folder sorted, of a dataset in its order.

        Raises RecipeError when the recipe has no labelled photos.
        """
        return self._classes_of(self._to_test)

    def classes_of(self, user: str) -> tuple[str, ...]:
        """The classes of a user; raises RecipeError or PhotosError for an unknown one."""
        wanted = self.recipe.user(user)
        if wanted.classes is None:
            raise RecipeError(
                f"user {user!r} has no classes in the recipe: name them to measure how well the "
                "user's photos are known"
            )
        source = self._to_test if wanted.photos else self._to_adapt
        classes = self._classes_of(source)
        if isinstance(wanted.classes, int):
            return draw_classes(classes, wanted.classes, wanted.draw)
        require_classes(wanted.classes, classes, source.place)
        return wanted.classes

    def adapt(self, user: str) -> list[Photo]:
        """The photos to adapt to a user on, without labels."""
        own = self.recipe.user(user).photos
        if own is not None:
            return without_labels(photos_in_folder(Path(own)))
        found = self._of(self._to_adapt, self.classes_of(user))
        if self.recipe.photos is not None:
            return self._split(found)[0]
        return without_labels(found)

    def control(self, user: str, count: int, *, with_own_classes: bool) -> list[Photo]:
        """Photos to adapt on instead of the user's, without labels: of all classes, or of others.

        count: how many, at most. They come from where photos to adapt on come from.
        """
        mine = () if with_own_classes else self.classes_of(user)
        classes = [name for name in self._classes_of(self._to_adapt) if name not in mine]
        if not classes:
            return []
        split = self.recipe.photos is not None
        share = 1 - self.recipe.test_share if split else 1.0
        found = self._of(self._to_adapt, classes, math.ceil(count / len(classes) / share))
        kept = self._split(found)[0] if split else without_labels(found)
        return draw_photos(kept, count, self.recipe.seed)

    def test(self, user: str) -> list[Photo]:
        """The labelled photos of a user's classes to measure on."""
        return self._tested(self.classes_of(user))

    def others(self, user: str) -> list[Photo]:
        """Labelled photos of classes that are not the user's: `forgetting_photos` of them."""
        mine = self.classes_of(user)
        classes = [name for name in self.classes if name not in mine]
        wanted = self.recipe.forgetting_photos
        if not wanted or not classes:
            return []
        share = self.recipe.test_share if self.recipe.photos is not None else 1.0
        each = math.ceil(wanted / len(classes) / share)
        return draw_photos(self._tested(classes, at_least=each), wanted, self.recipe.seed)

    def outputs(self, labels: Sequence[str]) -> dict[str, int]:
        """Which of a model's outputs each class is, see `match_classes` and `Recipe`."""
        if self.recipe.outputs != "in_order":
            return match_classes(self.classes, labels, self.recipe.outputs)
        if len(self.classes) != len(labels):
            raise RecipeError(
                f"outputs: in_order expects as many classes as outputs of the model, found "
                f"{len(self.classes)} and {len(labels)}"
            )
        return {name: number for number, name in enumerate(self.classes)}

    def find(self, personal: Personal) -> str | None:
        """The user whose photos a personal model was adapted on, told by their content.

        Where the photos of several users hold them all, it is the one with the fewest others.
        """
        found: list[tuple[int, str]] = []
        for user in self.recipe.users:
            hashes = set()
            for photo in self.adapt(user):
                try:
                    hashes.add(fingerprint(photo))
                except UnusablePhoto:
                    continue
            held = sum(map(personal.recordings.holds, hashes))
            if held == len(personal.recordings.hashes):
                found.append((len(hashes) - held, user))
        return min(found)[1] if found else None

    @property
    def _to_adapt(self) -> Photos:
        source = self.recipe.photos or self.recipe.adapt
        if source is None:
            raise RecipeError(
                "the recipe says of no photos to adapt on: give photos, adapt, or the user's own"
            )
        return source

    @property
    def _to_test(self) -> Photos:
        source = self.recipe.photos or self.recipe.test
        if source is None:
            raise RecipeError("the recipe says of no labelled photos: give photos or test")
        return source

    def _tested(self, classes: Collection[str], at_least: int | None = None) -> list[Photo]:
        found = self._of(self._to_test, classes, at_least)
        return self._split(found)[1] if self.recipe.photos is not None else found

    def _split(self, photos: Sequence[Photo]) -> tuple[list[Photo], list[Photo]]:
        return split_photos(photos, self.recipe.test_share, self.recipe.seed)

    def _classes_of(self, source: Photos) -> tuple[str, ...]:
        place = source.open(self.recipe.data_dir)
        if isinstance(place, PhotoDataset):
            return place.classes()
        names = sorted({photo.label for photo in self._list(place) if photo.label is not None})
        if not names:
            raise PhotosError(f"{place}: expected a folder of photos for each class, found none")
        return tuple(names)

    def _of(
        self, source: Photos, classes: Collection[str], limit: int | None = None
    ) -> list[Photo]:
        """The photos of some classes; limit: so many of each are enough."""
        place = source.open(self.recipe.data_dir)
        most = min((n for n in (limit, source.limit_per_class) if n is not None), default=None)
        if isinstance(place, PhotoDataset):
            return list(place.photos(classes, most))
        found = [photo for photo in self._list(place) if photo.label in classes]
        return limit_photos(found, source.limit_per_class, self.recipe.seed)

    def _list(self, folder: Path) -> list[Photo]:
        if folder not in self._listed:
            self._listed[folder] = photos_in_folder(folder)
        return self._listed[folder]


def match_classes(
    classes: Sequence[str], labels: Sequence[str], named: Mapping[str, str]
) -> dict[str, int]:
    """The number of the model's output for each class of a corpus, by name.

    labels: the model's names of its outputs. A class is matched by the label that `named` gives
    it, else by its own name: the whole label, else one of the synonyms that a label lists between
    commas ("tench" for "tench, Tinca tinca"). Raises PhotosError for a class that matches none or
    several.
    """
    found: dict[str, int] = {}
    for name in classes:
        label = named.get(name, name)
        whole = [number for number, each in enumerate(labels) if each == label]
        partly = [number for number, each in enumerate(labels) if label in each.split(", ")]
        candidates = whole or partly
        if len(candidates) != 1:
            raise PhotosError(
                f"class {name!r} of the photos matches {len(candidates)} of the model's "
                f"{len(labels)} classes (such as {labels[0]!r}): say which it is under `outputs` "
                "in the recipe, or `outputs: in_order` where both have the same order"
            )
        found[name] = candidates[0]
    return found
