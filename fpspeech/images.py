"""The use case for pictures: a user's unlabeled photos and a classifier in, a personal model out.

Labels are never read here; see `fpspeech.evaluate_images` for measuring.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from fpspeech.adaptation import pruning_for
from fpspeech.config import Config
from fpspeech.corpora.images import Photo, decode, draw_photos
from fpspeech.looking import Looked, Watcher, batched, look_at
from fpspeech.models import ImageModel
from fpspeech.personal import Base, Personal, Recordings
from fpspeech.personalize_speech import select_layers_of, weights_report
from fpspeech.pruning import (
    PrunableLayer,
    PrunedLayers,
    PruningError,
    Replay,
    Selection,
    apply_masks,
    batch_norms,
    match_batch_norms,
    products_for,
    prune_layers,
    prune_sequentially,
)
from fpspeech.pruning.output_prior import (
    Prior,
    estimate_prior,
    output_layer_with_prior,
    with_prior,
)

MATCHING_PHOTOS = 128
"""Photos that BatchNorms are matched on at most: their pixels are kept in memory."""


def personalize_photos(
    model: ImageModel,
    photos: Sequence[Photo],
    config: Config | None = None,
    *,
    watcher: Watcher | None = None,
) -> Personal:
    """Streams a user's photos through `model` and prunes what contributes little.

    The model is left as it was; `Personal.apply` puts the result in force. Labels are never read.
    Photos that cannot be used, and copies of one that was, are skipped and listed. Raises
    PhotosError when none is left, PruningError for settings that do not fit the model.
    """
    config = config or Config()
    selection = select_layers_of(model, config)
    started = time.perf_counter()
    looked = look_at(
        model,
        selection,
        photos,
        products=products_for(selection.layers, config.pruning),
        product_stride=config.pruning.product_stride,
        batch_size=config.batch_size,
        watcher=watcher,
    )
    seconds = time.perf_counter() - started
    return make_personal(model, selection, looked, config, seconds=seconds)


def make_personal(
    model: ImageModel,
    selection: Selection,
    looked: Looked,
    config: Config,
    *,
    seconds: float = 0.0,
) -> Personal:
    """What `config` makes of photos that were looked at once: one look serves every sparsity.

    seconds: how long looking took, for the report. Raises PruningError.
    """
    started = time.perf_counter()
    adapted = adapt(model, selection, looked, config)
    took = {"looking": seconds, "pruning": time.perf_counter() - started}
    return Personal(
        base=Base.of(model),
        config=config,
        masks=adapted.masks,
        recordings=Recordings.of(looked.fingerprints),
        seconds=0.0,
        report={
            "photos": len(looked.photos),
            "skipped": dict(Counter(skipped.reason for skipped in looked.skipped)),
            # The output layer's mask says what is never answered; it is no part of the sparsity.
            **weights_report(
                model,
                selection,
                {layer.name: adapted.masks[layer.name] for layer in selection.layers},
                adapted.kept,
            ),
            "batch_norms_matched": sum(name.endswith(".running_mean") for name in adapted.values),
            "output_prior": adapted.prior and _prior_report(adapted.prior),
            "wall_seconds": {name: round(seconds, 3) for name, seconds in took.items()},
        },
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("fpspeech", "torch", "transformers", "pillow")},
        },
        values=adapted.values,
        kept=adapted.kept,
    )


@dataclass(frozen=True)
class Adapted:
    """What pruning makes of a model: masks, kept weights and values as `Personal` holds them.

    prior: the user's shares of the classes, where they were asked for; its share of masks and
    values is that of the output layer.
    """

    masks: dict[str, Tensor]
    kept: dict[str, Tensor]
    values: dict[str, Tensor]
    prior: Prior | None = None


def adapt(model: ImageModel, selection: Selection, looked: Looked, config: Config) -> Adapted:
    """The masks, kept weights, BatchNorm moments and output layer that `config` gives.

    Nothing is changed in the model. With `batch_norm="match"` up to `MATCHING_PHOTOS` of the
    photos run through it again, several times where they do not fit into one batch. With
    `output_prior="em"` the prior comes from what the dense model answered while it looked, see
    `with_output_prior`.
    """
    pruned = _pruned(model, selection, looked, config)
    values = dict(pruned.values)
    if config.batch_norm == "match" and batch_norms(model.network):
        values |= _matched(model, selection, looked, config, pruned)
    adapted = Adapted(dict(pruned.masks), dict(pruned.kept), values)
    return adapted if config.output_prior == "none" else with_output_prior(model, looked, adapted)


def with_output_prior(model: ImageModel, looked: Looked, adapted: Adapted) -> Adapted:
    """The same with an output layer that knows the shares of the classes among the photos.

    Estimated from the answers of the dense model; see `fpspeech.pruning.output_prior`. Raises
    PruningError where the output layer is pruned itself, or does not put out the logits.
    """
    if model.output_layer in adapted.masks:
        raise PruningError(
            f"an output prior prunes whole classes of the output layer {model.output_layer}, "
            "which is pruned weight by weight already: exclude it"
        )
    prior = estimate_prior(looked.logits.softmax(1))
    masks, values = _prior_tensors(model, looked, prior)
    return replace(
        adapted, masks=adapted.masks | masks, values=adapted.values | values, prior=prior
    )


def _prior_tensors(
    model: ImageModel, looked: Looked, prior: Prior
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The mask and the bias of the output layer, by name; nothing where the prior changes nothing.

    They are tried on one photo, since a layer of as many outputs as classes need not be the last.
    """
    name = model.output_layer
    if not prior.differs:
        return {}, {}
    layer = model.network.get_submodule(name)
    weight, old = (layer.get_parameter(part) for part in ("weight", "bias"))
    mask, bias = output_layer_with_prior(weight, old, prior)
    masks, values = {name: mask}, {f"{name}.bias": bias}
    picture = [decode(looked.photos[0]).image]
    expected = with_prior(model.logits(picture), prior)
    applied = apply_masks([PrunableLayer(name, layer)], masks, network=model.network, values=values)
    with applied:
        found = model.logits(picture)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-2):
        raise PruningError(
            f"{name} has an output a class, but what it puts out are not the logits: an output "
            "prior does not fit this model"
        )
    return masks, values


def _prior_report(prior: Prior) -> dict[str, Any]:
    """How many classes stay, not which: the names would tell what the user photographs."""
    return {
        "classes": prior.shares.numel(),
        "kept_classes": int(prior.kept.sum()),
        "differs_from_training": prior.differs,
    }


def _pruned(
    model: ImageModel, selection: Selection, looked: Looked, config: Config
) -> PrunedLayers:
    """From what was looked at; in sequential order the photos run anew for every stage."""
    pruning = pruning_for(model, config)
    if pruning.order == "independent":
        return prune_layers(selection.layers, looked.statistics, pruning)

    def windows() -> Iterator[Replay]:
        for batch in batched(map(decode, looked.photos), config.batch_size):
            yield from model.replays([picture.image for picture in batch])

    return prune_sequentially(model.network, selection.layers, windows, pruning)


def _matched(
    model: ImageModel, selection: Selection, looked: Looked, config: Config, pruned: PrunedLayers
) -> dict[str, Tensor]:
    photos = draw_photos(looked.photos, MATCHING_PHOTOS, config.pruning.seed)
    batches = [
        partial(model.run, model.preprocess([picture.image for picture in batch]))
        for batch in batched(map(decode, photos), config.batch_size)
    ]
    return match_batch_norms(
        model.network,
        selection.layers,
        pruned.masks,
        batches,
        kept=pruned.kept,
        values=pruned.values,
    )
