"""The use case for pictures: a user's unlabeled photos and a classifier in, a personal model out.

Labels are never read here; see `fpspeech.evaluate_images` for measuring.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from torch import Tensor

from fpspeech.config import Config
from fpspeech.corpora.images import Photo, decode, draw_photos
from fpspeech.looking import Looked, Watcher, batched, look_at
from fpspeech.models import ImageModel
from fpspeech.personal import Base, Personal, Recordings
from fpspeech.personalize import pruning_for, select_layers_of, weights_report
from fpspeech.pruning import (
    Selection,
    batch_norms,
    make_masks,
    match_batch_norms,
    products_for,
    update_weights,
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
    seen = time.perf_counter()
    adapted = adapt(model, selection, looked, config)
    took = {"looking": seen - started, "pruning": time.perf_counter() - seen}
    return Personal(
        base=Base.of(model),
        config=config,
        masks=adapted.masks,
        recordings=Recordings.of(looked.fingerprints),
        seconds=0.0,
        report={
            "photos": len(looked.photos),
            "skipped": dict(Counter(skipped.reason for skipped in looked.skipped)),
            **weights_report(model, selection, adapted.masks, adapted.kept),
            "batch_norms_matched": len(adapted.values) // 2,
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
    """What pruning makes of a model: masks, kept weights and values as `Personal` holds them."""

    masks: dict[str, Tensor]
    kept: dict[str, Tensor]
    values: dict[str, Tensor]


def adapt(model: ImageModel, selection: Selection, looked: Looked, config: Config) -> Adapted:
    """The masks, kept weights and BatchNorm moments that `config` gives for what was seen.

    Nothing is changed in the model. With `batch_norm="match"` up to `MATCHING_PHOTOS` of the
    photos run through it again, several times where they do not fit into one batch.
    """
    pruning = pruning_for(model, config)
    masks = make_masks(selection.layers, looked.statistics, pruning)
    kept = update_weights(selection.layers, masks, looked.statistics, pruning)
    if config.batch_norm == "keep" or not batch_norms(model.network):
        return Adapted(masks, kept, {})
    photos = draw_photos(looked.photos, MATCHING_PHOTOS, pruning.seed)
    batches = [
        partial(model.run, model.preprocess([picture.image for picture in batch]))
        for batch in batched(map(decode, photos), config.batch_size)
    ]
    values = match_batch_norms(model.network, selection.layers, masks, batches, kept=kept)
    return Adapted(masks, kept, values)
