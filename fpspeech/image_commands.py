"""What `fpspeech personalize --recipe` and `fpspeech evaluate --recipe` do and print."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from fpspeech.console import notes, results, show_plan
from fpspeech.evaluate_images import PhotoEvaluation, PriorEvaluation, evaluate_photos
from fpspeech.evaluation import Interval, percentage, percentage_interval
from fpspeech.evaluation.accuracy import Accuracy, AccuracyChange
from fpspeech.images import personalize_photos
from fpspeech.listening import Skipped
from fpspeech.looking import Watcher
from fpspeech.models import ImageModel, load_image_model
from fpspeech.output_folder import require_free
from fpspeech.personal import Personal
from fpspeech.personalize_speech import plan
from fpspeech.recipe import Recipe, read_recipe
from fpspeech.recipe_file import RecipeError
from fpspeech.user_photos import UserPhotos


def personalize_user(
    path: Path,
    user: str | None,
    out: Path | None,
    *,
    model: str | None,
    changes: Mapping[str, Any],
    device: str,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Adapts a recipe's model to a user's photos and writes the personal model.

    changes: settings of pruning that overrule the recipe's. Raises RecipeError and what
    `personalize_photos` raises.
    """
    recipe = read_recipe(path)
    config = recipe.config(**changes)
    if dry_run:
        loaded = _load(recipe, model, device)
        show_plan(loaded, plan(loaded, config), config, as_json)
        return
    name = user or _only_user(recipe)
    recipe.user(name)
    folder = out or Path("personal") / name
    require_free(folder, overwrite)
    photos = UserPhotos(recipe).adapt(name)
    loaded = _load(recipe, model, device)
    with _progress("looking", len(photos)) as watcher:
        personal = personalize_photos(loaded, photos, config, watcher=watcher)
    personal.save(folder, overwrite=overwrite)
    following = ["fpspeech", "evaluate", str(folder), "--recipe", str(path), "--user", name]
    following += ["--model", model] if model else []
    _show_personal(personal, folder, shlex.join(following), as_json)


def evaluate_user(
    folder: Path,
    path: Path,
    user: str | None,
    *,
    model: str | None,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Measures a personal model on its user's test photos: four accuracies, and the forgetting.

    Raises RecipeError when the recipe does not say whose photos it was adapted on.
    """
    recipe = read_recipe(path)
    personal = Personal.load(folder)
    photos = UserPhotos(recipe)
    name = user or photos.find(personal)
    if name is None:
        raise RecipeError(
            f"{path}: the photos of none of its users are those that {folder} was adapted on: say "
            f"--user, one of {', '.join(recipe.users)}"
        )
    loaded = _load(recipe, model, device)
    test, others = photos.test(name), photos.others(name)
    models = 4 if personal.config.output_prior != "none" else 2
    with _progress("answering", models * (len(test) + len(others))) as watcher:
        evaluation = evaluate_photos(
            loaded,
            personal,
            test,
            photos.classes_of(name),
            photos.outputs(loaded.labels),
            others=others,
            seed=seed,
            watcher=watcher,
        )
    _show_evaluation(evaluation, personal, as_json)


def load_base(personal: Personal, model: str | None, device: str = "cpu") -> ImageModel:
    """The base of a personal image model: as given, else from the Hub.

    Raises RecipeError when it was a local folder and none is given.
    """
    base = personal.base
    if model is None and base.revision is None:
        raise RecipeError(
            f"the personal model was made from a local base named {base.id!r}: say where it is "
            "with --model"
        )
    revision = base.revision if model is None else None
    return load_image_model(model or base.id, revision=revision, device=device)


def _load(recipe: Recipe, model: str | None, device: str) -> ImageModel:
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call] # of loading: a second
    revision = None if model else recipe.revision
    return load_image_model(model or recipe.model, revision=revision, device=device)


def _only_user(recipe: Recipe) -> str:
    if len(recipe.users) == 1:
        return next(iter(recipe.users))
    raise RecipeError(
        f"the recipe has {len(recipe.users)} users ({', '.join(recipe.users)}): say which one "
        "with --user"
    )


@contextmanager
def _progress(what: str, photos: int) -> Iterator[Watcher]:
    with Progress(*Progress.get_default_columns(), console=notes) as progress:
        task = progress.add_task(f"{what} ({photos} photos)", total=photos)

        def skipped(photo: Skipped, message: str) -> None:
            progress.console.print(f"[yellow]skipped[/] {escape(message)}", soft_wrap=True)
            progress.advance(task)

        yield Watcher(seen=lambda done: progress.advance(task, done), skipped=skipped)


def _show_personal(personal: Personal, folder: Path, following: str, as_json: bool) -> None:
    report = personal.report
    size = sum(path.stat().st_size for path in folder.iterdir())
    if as_json:
        print(json.dumps({"folder": str(folder), "bytes": size, **report}))
        return
    skipped = ", ".join(f"{count} {reason}" for reason, count in report["skipped"].items())
    table = Table(show_header=False)
    table.add_row("seen", f"{report['photos']} photos, no labels")
    table.add_row("skipped", skipped or "none")
    table.add_row(
        "pruned",
        f"{report['pruned_weights']:,} of {report['prunable_weights']:,} weights "
        f"({report['sparsity']:.1%}); {report['parameters']:,} parameters in all",
    )
    table.add_row("matched", f"moments of {report['batch_norms_matched']} BatchNorms")
    if prior := report["output_prior"]:
        table.add_row("answers", _answers(prior))
    for exclusion in report["excluded"]:
        table.add_row("left dense", f"{exclusion['name']}: {escape(exclusion['reason'])}")
    table.add_row("took", f"{sum(report['wall_seconds'].values()):.1f} s")
    table.add_row("written", f"{escape(str(folder))} ({decimal(size)})")
    results.print(table)
    results.print(f"next: {escape(following)}", soft_wrap=True)


def _show_evaluation(evaluation: PhotoEvaluation, personal: Personal, as_json: bool) -> None:
    numbers, forgetting = evaluation.numbers, evaluation.forgetting
    everything, few = numbers.dense_all.among, numbers.dense_user.among
    sparsity = personal.report["sparsity"]
    if as_json:
        value = {
            "photos": evaluation.photos,
            "classes": list(evaluation.classes),
            "already_seen": evaluation.already_seen,
            "skipped": [asdict(skipped) for skipped in evaluation.skipped],
            "sparsity": sparsity,
            "dense_all_classes": _accuracy(numbers.dense_all),
            "pruned_all_classes": _accuracy(numbers.pruned_all),
            "dense_user_classes": _accuracy(numbers.dense_user),
            "pruned_user_classes": _accuracy(numbers.pruned_user),
            "change_all_classes": asdict(numbers.change_all),
            "change_user_classes": asdict(numbers.change_user),
            "gain_of_restricting_dense": numbers.gain_of_restricting,
            "other_classes": forgetting
            and {
                "photos": forgetting.dense.right.size,
                "dense": _accuracy(forgetting.dense),
                "pruned": _accuracy(forgetting.pruned),
                "change": asdict(forgetting.change),
            },
            "output_prior": evaluation.prior and _prior_json(evaluation.prior),
        }
        print(json.dumps(value))
        return
    table = Table(title=f"accuracy, {sparsity:.1%} of weights pruned")
    table.add_column("photos")
    table.add_column("chosen among")
    table.add_column("model")
    table.add_column("accuracy", justify="right")
    table.add_column("95 % interval", justify="right")

    mine, all_of = f"{evaluation.photos} of the user", f"all {everything} classes"
    only = f"the user's {few}"
    blocks = [
        (mine, all_of, numbers.dense_all, numbers.pruned_all),
        (mine, only, numbers.dense_user, numbers.pruned_user),
    ]
    if forgetting is not None:
        others = f"{forgetting.dense.right.size} of other classes"
        blocks += [(others, all_of, forgetting.dense, forgetting.pruned)]
    parts = None if evaluation.prior is None else _parts_of(evaluation.prior)
    for number, (photos, among, dense, whole) in enumerate(blocks):
        models: list[tuple[str, Accuracy | None]] = [("dense", dense), ("personal", whole)]
        if parts is not None:
            dense_prior, pruned = parts[number]
            models = [
                ("dense", dense),
                ("dense + prior", dense_prior),
                ("pruned", pruned),
                ("pruned + prior", whole),
            ]
        for name, found in models:
            if found is not None:
                interval = percentage_interval(found.interval)
                table.add_row(photos, among, name, percentage(found.rate), interval)
    results.print(table)
    if evaluation.prior is not None:
        steps = evaluation.prior.parts
        for what, step in (
            ("the prior alone: (dense + prior) - dense", steps.prior),
            ("pruning alone: pruned - dense", steps.pruning),
            (
                "pruning, with the prior: (pruned + prior) - (dense + prior)",
                steps.pruning_with_prior,
            ),
        ):
            results.print(f"{what}, {all_of}: {_difference(step.all)}", soft_wrap=True)
    results.print(f"personal - dense, {all_of}: {_change(numbers.change_all)}", soft_wrap=True)
    results.print(f"personal - dense, {only}: {_change(numbers.change_user)}", soft_wrap=True)
    results.print(
        f"Choosing among {only} classes alone changes the dense model by "
        f"{percentage(numbers.gain_of_restricting, signed=True)}: that is not a gain of pruning. "
        "Compare personal with dense among the same classes.",
        soft_wrap=True,
    )
    results.print(
        f"left out: {evaluation.already_seen} photos used to adapt, {len(evaluation.skipped)} "
        "unusable",
        soft_wrap=True,
    )


def _answers(prior: Mapping[str, Any]) -> str:
    if not prior["differs_from_training"]:
        return f"all {prior['classes']} classes: these photos' shares may be those of training"
    return (
        f"{prior['kept_classes']} of {prior['classes']} classes, those expected among the photos, "
        "and never another"
    )


def _prior_json(prior: PriorEvaluation) -> dict[str, Any]:
    parts = prior.parts
    others = (prior.other_classes_dense_prior, prior.other_classes_pruned)
    return {
        "dense_prior_all_classes": _accuracy(parts.dense_prior_all),
        "pruned_without_prior_all_classes": _accuracy(parts.pruned_all),
        "dense_prior_user_classes": _accuracy(parts.dense_prior_user),
        "pruned_without_prior_user_classes": _accuracy(parts.pruned_user),
        "dense_prior_other_classes": others[0] and _accuracy(others[0]),
        "pruned_without_prior_other_classes": others[1] and _accuracy(others[1]),
        "change_of_the_prior": asdict(parts.prior),
        "change_of_pruning": asdict(parts.pruning),
        "change_of_pruning_with_prior": asdict(parts.pruning_with_prior),
    }


def _parts_of(prior: PriorEvaluation) -> list[tuple[Accuracy | None, Accuracy | None]]:
    """Dense with the prior and pruned without: all classes, the user's, photos of other classes."""
    parts = prior.parts
    return [
        (parts.dense_prior_all, parts.pruned_all),
        (parts.dense_prior_user, parts.pruned_user),
        (prior.other_classes_dense_prior, prior.other_classes_pruned),
    ]


def _difference(change: AccuracyChange) -> str:
    interval = percentage_interval(Interval(change.low, change.high), signed=True)
    return f"{percentage(change.difference, signed=True)} {escape(interval)}"


def _change(change: AccuracyChange) -> str:
    return (
        f"{_difference(change)}; probability that personal is better: "
        f"{change.probability_better:.2f}"
    )


def _accuracy(found: Accuracy) -> dict[str, Any]:
    return {
        "accuracy": found.rate,
        "interval": [found.interval.low, found.interval.high],
        "among_classes": found.among,
    }
