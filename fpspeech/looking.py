"""Running a user's photos through an image model once: statistics, and what was skipped.

Nothing here reads a label, and no gradient is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fpspeech.corpora.images import Photo, PhotosError, Picture, UnusablePhoto, decode
from fpspeech.listening import Skipped
from fpspeech.models import ImageModel
from fpspeech.pruning import InputStatistics, Observer, Selection


@dataclass(frozen=True)
class Watcher:
    """What to call while photos run through a model.

    seen: with the number of photos of each batch. skipped: with each photo that cannot be used,
    and the full message.
    """

    seen: Callable[[int], None] = lambda photos: None
    skipped: Callable[[Skipped, str], None] = lambda skipped, message: None


@dataclass
class Looked:
    """What one pass over a user's photos through the dense model found.

    photos: those that were used, in order. fingerprints: SHA-256 of the file of each. statistics:
    of every layer's input. logits: what it answered, shape (photos, classes), float32.
    """

    photos: list[Photo] = field(default_factory=list, repr=False)
    fingerprints: list[str] = field(default_factory=list, repr=False)
    skipped: list[Skipped] = field(default_factory=list)
    statistics: dict[str, InputStatistics] = field(default_factory=dict, repr=False)
    logits: Tensor = field(default_factory=lambda: torch.empty(0, 0), repr=False)


def look_at(
    model: ImageModel,
    selection: Selection,
    photos: Iterable[Photo],
    *,
    products: Container[str] = (),
    product_stride: int = 1,
    batch_size: int = 1,
    watcher: Watcher | None = None,
) -> Looked:
    """Runs photos through the dense model once and counts what its layers take in.

    products: names of the layers whose Σxxᵀ is counted too, at every `product_stride`-th position.
    Raises PhotosError when no photo can be used.
    """
    looked = Looked()
    observer = Observer(selection.layers, products, product_stride)
    usable = usable_photos(photos, looked, watcher or Watcher())
    logits = [
        model.observe([picture.image for picture in batch], observer)
        for batch in batched(usable, batch_size, watcher)
    ]
    if not looked.photos:
        reasons = Counter(skipped.reason for skipped in looked.skipped)
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        raise PhotosError(f"no photo to adapt on{f': {listed}' if listed else ''}")
    looked.statistics = observer.statistics()
    looked.logits = torch.cat(logits)
    return looked


def usable_photos(photos: Iterable[Photo], looked: Looked, watcher: Watcher) -> Iterator[Picture]:
    """Decodes photos and keeps account of them in `looked`; a second copy of one is skipped."""
    first: dict[str, str] = {}
    for photo in photos:
        try:
            picture = decode(photo)
        except UnusablePhoto as error:
            looked.skipped.append(Skipped(photo.id, error.reason))
            watcher.skipped(looked.skipped[-1], str(error))
            continue
        other = first.setdefault(picture.sha256, photo.id)
        if other != photo.id:
            looked.skipped.append(Skipped(photo.id, "same photo twice"))
            watcher.skipped(looked.skipped[-1], f"{photo.id} is the same photo as {other}")
            continue
        looked.photos.append(photo)
        looked.fingerprints.append(picture.sha256)
        yield picture


def batched(
    pictures: Iterable[Picture], size: int, watcher: Watcher | None = None
) -> Iterator[list[Picture]]:
    """Pictures by the batch; `watcher` sees each batch when it is done."""
    batch: list[Picture] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == size:
            yield batch
            (watcher or Watcher()).seen(len(batch))
            batch = []
    if batch:
        yield batch
        (watcher or Watcher()).seen(len(batch))
