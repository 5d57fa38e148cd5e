"""The controls of a recipe for photos: other methods, other photos, other ways with BatchNorm.

Every method is measured with BatchNorm moments kept and matched. Methods that look at photos are
also calibrated on photos of all classes and of other classes, as many: what that costs is what the
user's own photos are worth. Two other ways with BatchNorm are there to show why they are not taken:
moments estimated anew on the user's photos, and moments matched in a single pass that measures all
layers at once.

Where the recipe asks for an output prior, everything is measured with it and without, the dense
model too: what the prior does is no gain of pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from fpspeech.config import Config
from fpspeech.corpora.images import decode, draw_photos
from fpspeech.image_results import DENSE, DENSE_SYSTEM, OWN, ImageSystem
from fpspeech.images import MATCHING_PHOTOS, Adapted, adapt, with_output_prior
from fpspeech.looking import Looked
from fpspeech.methods import pruning_of
from fpspeech.models import ImageModel
from fpspeech.pruning import (
    SCORES,
    Applied,
    PrunableLayer,
    Selection,
    apply_masks,
    batch_norms,
    measure_moments,
)
from fpspeech.pruning.update import matched_moments
from fpspeech.recipe import Recipe

CALIBRATIONS = {"all classes' photos": True, "other classes' photos": False}
"""Whose photos a control looks at, and whether the user's own classes are among them."""

SHOWN_WRONG = "fine_pruning"
"""The method that is shown with the wrong ways, too."""


def personal_method(config: Config) -> str:
    """What the settings of personal models are called among the methods."""
    score, update = config.pruning.score, config.pruning.update
    return score if update == "none" else f"{score}+{update}"


def personal_system(recipe: Recipe, sparsity: float) -> ImageSystem:
    """The personal models of a recipe, as something to measure."""
    config = recipe.config()
    return ImageSystem(
        personal_method(config), OWN, config.batch_norm, sparsity, config.output_prior
    )


def control_systems(recipe: Recipe) -> Iterator[ImageSystem]:
    """All that is measured beside the dense and the personal models."""
    methods = dict.fromkeys((personal_method(recipe.config()), *recipe.methods))
    priors = ["none"]
    if recipe.config().output_prior != "none":
        priors += [recipe.config().output_prior]
        for calibration in (OWN, *CALIBRATIONS):
            yield replace(DENSE_SYSTEM, calibration=calibration, output_prior=priors[-1])
    for calibration in (OWN, *CALIBRATIONS):
        for method in methods:
            if calibration != OWN and not looks(method):
                continue
            norms = ["keep", "match"]
            if (method, calibration) == (SHOWN_WRONG, OWN):
                norms += WRONG_WAYS
            for norm, prior in product(norms, priors):
                if norm in WRONG_WAYS and prior != "none":
                    continue
                for sparsity in recipe.sparsity:
                    system = ImageSystem(method, calibration, norm, sparsity, prior)
                    if system != personal_system(recipe, sparsity):
                        yield system


def looks(method: str) -> bool:
    """Whether a method needs photos at all."""
    return "+" in method or SCORES[method].needs_statistics


def adapted_to(
    model: ImageModel, selection: Selection, looked: Looked, recipe: Recipe, system: ImageSystem
) -> Adapted:
    """What a control makes of the photos that were looked at."""
    if system.method == DENSE:
        return with_output_prior(model, looked, Adapted({}, {}, {}))
    config = recipe.config()
    pruning = replace(pruning_of(system.method, config.pruning), sparsity=system.sparsity)
    wrong = WRONG_WAYS.get(system.batch_norm)
    norm = system.batch_norm if wrong is None else "keep"
    settings = replace(config, pruning=pruning, batch_norm=norm, output_prior=system.output_prior)
    adapted = adapt(model, selection, looked, settings)
    if wrong is None:
        return adapted
    return replace(adapted, values=adapted.values | wrong(model, adapted, looked, recipe))


def put_in_force(model: ImageModel, adapted: Adapted) -> Applied:
    """Applies what was adapted to the model in memory; see `apply_masks`."""
    layers = [PrunableLayer(name, model.network.get_submodule(name)) for name in adapted.masks]
    return apply_masks(
        layers, adapted.masks, network=model.network, values=adapted.values, kept=adapted.kept
    )


@torch.no_grad()
def estimate_anew(
    model: ImageModel, adapted: Adapted, looked: Looked, recipe: Recipe
) -> dict[str, Tensor]:
    """BatchNorm moments as the pruned model has them on a user's photos: a control, no advice."""
    pixels = _matching_pixels(model, looked, recipe)
    norms = batch_norms(model.network)
    own = {
        f"{name}.{key}": value.clone()
        for name, norm in norms.items()
        for key, value in norm.named_buffers(recurse=False)
    }
    momenta = {name: norm.momentum for name, norm in norms.items()}
    with put_in_force(model, replace(adapted, values=adapted.values | own)):
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
    model: ImageModel, adapted: Adapted, looked: Looked, recipe: Recipe
) -> dict[str, Tensor]:
    """All moments matched from one pass, each behind BatchNorms not yet matched: a control."""
    batches = [partial(model.run, _matching_pixels(model, looked, recipe))]
    dense = measure_moments(model.network, batches)
    with put_in_force(model, adapted):
        pruned = measure_moments(model.network, batches)
    values = {}
    for name, norm in batch_norms(model.network).items():
        mean, variance = matched_moments(norm, dense[name], pruned[name])
        values[f"{name}.running_mean"] = mean.float()
        values[f"{name}.running_var"] = variance.float()
    return values


WrongWay = Callable[[ImageModel, Adapted, Looked, Recipe], dict[str, Tensor]]

WRONG_WAYS: dict[str, WrongWay] = {
    "estimated anew": estimate_anew,
    "matched at once": match_at_once,
}


def _matching_pixels(model: ImageModel, looked: Looked, recipe: Recipe) -> Tensor:
    photos = draw_photos(looked.photos, MATCHING_PHOTOS, recipe.seed)
    return model.preprocess([decode(photo).image for photo in photos])
