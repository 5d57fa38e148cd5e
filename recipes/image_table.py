"""The table of an image recipe: methods and controls at equal sparsity, four numbers each.

For every user of the recipe, on the same test photos: dense, then every method at every sparsity,
with BatchNorm moments kept and matched. Methods that look at photos are also calibrated on photos
of all classes and of other classes, as many: what that costs is what the user's own photos are
worth. Two other ways with BatchNorm are there to show why they are not taken: moments estimated
anew on the user's photos, and moments matched in a single pass that measures all layers at once.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fpspeech.compare import pruning_of
from fpspeech.config import Config
from fpspeech.corpora.images import Photo, decode, draw_photos
from fpspeech.evaluate_images import Scene, answer
from fpspeech.evaluation import bootstrap_interval, markdown_table
from fpspeech.evaluation.accuracy import Accuracy, FourAccuracies, accuracy, four_accuracies
from fpspeech.images import MATCHING_PHOTOS, Adapted, adapt
from fpspeech.looking import Looked, look_at
from fpspeech.models import ImageModel, load_image_model
from fpspeech.output_folder import whole_folder
from fpspeech.personal import Recordings
from fpspeech.personalize import select_layers_of
from fpspeech.pruning import (
    SCORES,
    Selection,
    apply_masks,
    batch_norms,
    measure_moments,
    products_for,
)
from fpspeech.pruning.update import matched_moments
from fpspeech.recipe import Recipe, read_recipe
from fpspeech.user_photos import UserPhotos

METHODS = ("fine_pruning", "wanda", "magnitude", "random")
SPARSITIES = (0.3, 0.5, 0.7)
CONTROLS = {"all classes' photos": True, "other classes' photos": False}
WRONG_WAYS_WITH = "fine_pruning"  # the method that is shown with the wrong ways, too


@dataclass(frozen=True)
class Row:
    """One user under one pruned model: the four numbers, and the accuracy on other classes."""

    user: str
    method: str
    calibration: str
    batch_norm: str
    sparsity: float
    numbers: FourAccuracies
    others_dense: float | None
    others_pruned: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        change = self.numbers.change_all
        return {
            "user": self.user,
            "method": self.method,
            "calibrated_on": self.calibration,
            "batch_norm": self.batch_norm,
            "sparsity": self.sparsity,
            "photos": self.numbers.dense_all.right.size,
            "dense_all_classes": self.numbers.dense_all.rate,
            "pruned_all_classes": self.numbers.pruned_all.rate,
            "dense_user_classes": self.numbers.dense_user.rate,
            "pruned_user_classes": self.numbers.pruned_user.rate,
            "change_all_classes": [change.difference, change.low, change.high],
            "probability_better_all_classes": change.probability_better,
            "dense_other_classes": self.others_dense,
            "pruned_other_classes": self.others_pruned,
        }


def measure_user(
    model: ImageModel,
    photos: UserPhotos,
    user: str,
    methods: Sequence[str],
    sparsities: Sequence[float],
) -> Iterator[Row]:
    """Every method at every sparsity for one user; dense comes first, at sparsity 0."""
    recipe = photos.recipe
    outputs = photos.outputs(model.labels)
    classes = [outputs[name] for name in photos.classes_of(user)]
    config = recipe.config()
    selection = select_layers_of(model, config)
    mine = photos.adapt(user)
    looks = {"own photos": _look(model, selection, mine, methods, config)}
    for name, with_own in CONTROLS.items():
        if found := photos.control(user, len(mine), with_own_classes=with_own):
            looks[name] = _look(model, selection, found, methods, config)
    adapted_on = Recordings.of(looks["own photos"].fingerprints)
    test, others = photos.test(user), photos.others(user)

    def see() -> tuple[Scene, Scene]:
        size = config.batch_size
        return (
            answer(model, test, outputs, adapted_on, batch_size=size),
            answer(model, others, outputs, adapted_on, batch_size=size),
        )

    dense, dense_others = see()

    def row(method: str, calibration: str, norm: str, sparsity: float) -> Row:
        seen, seen_others = see()
        numbers = four_accuracies(
            dense.logits, seen.logits, dense.labels, classes, seed=recipe.seed
        )
        rates = [
            accuracy(each.logits, each.labels).rate if each.labels else None
            for each in (dense_others, seen_others)
        ]
        return Row(user, method, calibration, norm, sparsity, numbers, *rates)

    yield row("dense", "", "", 0.0)
    for calibration, looked in looks.items():
        for method in methods:
            if calibration != "own photos" and not _looks(method):
                continue
            for sparsity in sparsities:
                pruning = replace(pruning_of(method, config.pruning), sparsity=sparsity)
                for norm in ("keep", "match"):
                    settings = replace(config, pruning=pruning, batch_norm=norm)
                    adapted = adapt(model, selection, looked, settings)
                    with _applied(model, selection, adapted):
                        yield row(method, calibration, norm, sparsity)
                    if norm == "keep" and (method, calibration) == (WRONG_WAYS_WITH, "own photos"):
                        for way, update in WRONG_WAYS.items():
                            values = update(model, selection, adapted, looked, recipe)
                            with _applied(model, selection, replace(adapted, values=values)):
                                yield row(method, calibration, way, sparsity)


@torch.no_grad()
def estimate_anew(
    model: ImageModel, selection: Selection, adapted: Adapted, looked: Looked, recipe: Recipe
) -> dict[str, torch.Tensor]:
    """BatchNorm moments as the pruned model has them on a user's photos: a control, no advice."""
    pixels = _matching_pixels(model, looked, recipe)
    norms = batch_norms(model.network)
    own = {
        f"{name}.{key}": value.clone()
        for name, norm in norms.items()
        for key, value in norm.named_buffers(recurse=False)
    }
    momenta = {name: norm.momentum for name, norm in norms.items()}
    with _applied(model, selection, replace(adapted, values=own)):
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # a plain average, here of one batch
            norm.train()
        model.run(pixels)
        for name, norm in norms.items():
            norm.momentum = momenta[name]
            norm.eval()
        state = model.network.state_dict()
        return {key: state[key].clone() for key in own if not key.endswith("num_batches_tracked")}


def match_at_once(
    model: ImageModel, selection: Selection, adapted: Adapted, looked: Looked, recipe: Recipe
) -> dict[str, torch.Tensor]:
    """All moments matched from one pass, each behind BatchNorms not yet matched: a control."""
    batches = [partial(model.run, _matching_pixels(model, looked, recipe))]
    dense = measure_moments(model.network, batches)
    with _applied(model, selection, adapted):
        pruned = measure_moments(model.network, batches)
    values = {}
    for name, norm in batch_norms(model.network).items():
        mean, variance = matched_moments(norm, dense[name], pruned[name])
        values[f"{name}.running_mean"] = mean.float()
        values[f"{name}.running_var"] = variance.float()
    return values


WRONG_WAYS = {"estimated anew": estimate_anew, "matched at once": match_at_once}


def table(rows: Sequence[Row]) -> str:
    """Markdown: accuracy in percent over all users' test photos, with its 95 % interval.

    Among all classes and among the user's for each sparsity; last, among all classes on photos of
    other classes. The interval resamples users first, then their photos.
    """
    sparsities = sorted({row.sparsity for row in rows if row.sparsity})
    headers = ["method", "calibrated on", "BatchNorm"]
    for sparsity in sparsities:
        headers += [f"{sparsity:.0%} zeros, all classes", f"{sparsity:.0%}, the user's"]
    headers += [f"other classes at {', '.join(f'{sparsity:.0%}' for sparsity in sparsities)}"]
    lines = []
    for kind in dict.fromkeys((row.method, row.calibration, row.batch_norm) for row in rows):
        cells, others = [], []
        for sparsity in sparsities:
            same = [
                row
                for row in rows
                if (row.method, row.calibration, row.batch_norm) == kind
                and row.sparsity in (sparsity, 0.0)
            ]
            cells += [
                _cell([row.numbers.pruned_all for row in same]),
                _cell([row.numbers.pruned_user for row in same]),
            ]
            rates = [row.others_pruned for row in same if row.others_pruned is not None]
            others += [f"{100 * np.mean(rates):.1f}"] if rates else []
        lines.append([*kind, *cells, ", ".join(others)])
    return markdown_table(headers, lines)


def _cell(found: Sequence[Accuracy]) -> str:
    wrong = np.concatenate([~each.right for each in found])
    groups = [number for number, each in enumerate(found) for _ in each.right]
    ends = bootstrap_interval(wrong, np.ones(wrong.size), groups=groups)
    low, high = 100 * (1 - ends.high), 100 * (1 - ends.low)
    return f"{100 * (1 - wrong.mean()):.1f} [{low:.1f}, {high:.1f}]"


def _look(
    model: ImageModel,
    selection: Selection,
    photos: Sequence[Photo],
    methods: Sequence[str],
    config: Config,
) -> Looked:
    products: frozenset[str] = frozenset()
    for method in methods:
        products |= products_for(selection.layers, pruning_of(method, config.pruning))
    return look_at(
        model,
        selection,
        photos,
        products=products,
        product_stride=config.pruning.product_stride,
        batch_size=config.batch_size,
    )


def _matching_pixels(model: ImageModel, looked: Looked, recipe: Recipe) -> torch.Tensor:
    photos = draw_photos(looked.photos, MATCHING_PHOTOS, recipe.seed)
    return model.preprocess([decode(photo).image for photo in photos])


def _looks(method: str) -> bool:
    return "+" in method or SCORES[method].needs_statistics


def _applied(model: ImageModel, selection: Selection, adapted: Adapted) -> Any:
    return apply_masks(
        selection.layers,
        adapted.masks,
        network=model.network,
        values=adapted.values,
        kept=adapted.kept,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path, help="a recipe file")
    parser.add_argument("out", type=Path, help="folder for table.md and table.json")
    parser.add_argument("--user", action="append", help="repeatable; by default all")
    parser.add_argument("--method", action="append", help="score or score+update; repeatable")
    parser.add_argument("--sparsity", action="append", type=float, help="repeatable")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    recipe = read_recipe(arguments.recipe)
    model = load_image_model(recipe.model, revision=recipe.revision, device=arguments.device)
    photos = UserPhotos(recipe)
    started = time.perf_counter()
    rows: list[Row] = []
    for user in arguments.user or recipe.users:
        rows += measure_user(
            model, photos, user, arguments.method or METHODS, arguments.sparsity or SPARSITIES
        )
        print(f"{user}: {time.perf_counter() - started:.0f} s", flush=True)
    written = table(rows)
    with whole_folder(arguments.out, overwrite=True) as draft:
        (draft / "table.md").write_text(written, encoding="utf-8")
        values = [row.as_json() for row in rows]
        (draft / "table.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
