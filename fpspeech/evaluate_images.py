"""How well a model knows a user's photos that have labels: dense beside pruned, four numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fpspeech.corpora.images import Photo, PhotosError, Picture
from fpspeech.evaluation.accuracy import (
    Accuracy,
    AccuracyChange,
    Decomposition,
    FourAccuracies,
    accuracy,
    accuracy_change,
    decomposition,
    four_accuracies,
)
from fpspeech.listening import Skipped
from fpspeech.looking import Looked, Watcher, batched, usable_photos
from fpspeech.models import ImageModel
from fpspeech.personal import Personal, Recordings


@dataclass(frozen=True)
class Scene:
    """Labelled photos as a model answers them: logits, shape (photos, classes), and what is right.

    already_seen: photos that were left out because the personal model was adapted on them.
    """

    logits: Tensor = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    already_seen: int = 0
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Forgetting:
    """Accuracy among all classes on photos of classes that are not the user's."""

    dense: Accuracy
    pruned: Accuracy
    change: AccuracyChange


@dataclass(frozen=True)
class PriorEvaluation:
    """What an output prior does and what pruning does, each without the other.

    other_classes_dense_prior, other_classes_pruned: accuracy among all classes on photos of other
    classes, of the dense model with the prior and of the pruned one without.
    """

    parts: Decomposition
    other_classes_dense_prior: Accuracy | None
    other_classes_pruned: Accuracy | None


@dataclass(frozen=True)
class PhotoEvaluation:
    """The four numbers of a user, on photos the personal model was not adapted on.

    prior: what is whose, where the personal model has an output prior.
    """

    numbers: FourAccuracies
    photos: int
    classes: tuple[str, ...]
    already_seen: int
    skipped: tuple[Skipped, ...]
    forgetting: Forgetting | None = None
    prior: PriorEvaluation | None = None


def evaluate_photos(
    model: ImageModel,
    personal: Personal,
    test: Sequence[Photo],
    classes: Sequence[str],
    outputs: Mapping[str, int],
    *,
    others: Sequence[Photo] = (),
    seed: int = 0,
    watcher: Watcher | None = None,
) -> PhotoEvaluation:
    """Measures dense and pruned, each among all classes and among the user's.

    test: labelled photos of the user's classes. classes: the user's. outputs: the number of the
    model's output for each class, see `UserPhotos`. others: photos of other classes, for what
    the pruned model forgot. Photos it was adapted on are left out, told by their content. A
    personal model with an output prior is taken apart: the prior alone and pruning alone.
    Raises PhotosError when no test photo is left.
    """
    size = personal.config.batch_size

    def answers(photos: Sequence[Photo]) -> Scene:
        return answer(model, photos, outputs, personal.recordings, batch_size=size, watcher=watcher)

    dense = answers(test)
    if not dense.labels:
        raise PhotosError(
            f"nothing to evaluate on: of {len(test)} photos of the user's classes, "
            f"{dense.already_seen} were used to adapt and {len(dense.skipped)} cannot be used"
        )
    dense_others = answers(others) if others else None

    def answers_of(part: Personal) -> tuple[Scene, Scene | None]:
        with part.apply(model):
            return answers(test), answers(others) if others else None

    pruned, pruned_others = answers_of(personal)
    mine = [outputs[name] for name in classes]
    numbers = four_accuracies(dense.logits, pruned.logits, dense.labels, mine, seed=seed)
    forgetting = None
    if dense_others and pruned_others and dense_others.labels:
        before, after = (
            accuracy(each.logits, each.labels, seed=seed) for each in (dense_others, pruned_others)
        )
        forgetting = Forgetting(before, after, accuracy_change(before, after, seed=seed))
    apart = None
    if (parts := prior_and_pruning(model, personal)) is not None:
        (prior, prior_others), (alone, alone_others) = (answers_of(part) for part in parts)
        apart = PriorEvaluation(
            decomposition(
                dense.logits,
                prior.logits,
                alone.logits,
                pruned.logits,
                dense.labels,
                mine,
                seed=seed,
            ),
            *(
                accuracy(each.logits, each.labels, seed=seed) if each and each.labels else None
                for each in (prior_others, alone_others)
            ),
        )
    return PhotoEvaluation(
        numbers,
        photos=len(dense.labels),
        classes=tuple(classes),
        already_seen=dense.already_seen,
        skipped=dense.skipped,
        forgetting=forgetting,
        prior=apart,
    )


def prior_and_pruning(model: ImageModel, personal: Personal) -> tuple[Personal, Personal] | None:
    """A personal model taken apart: its output prior alone, and all but its prior.

    None where it has none, or where the prior changes nothing.
    """
    if personal.config.output_prior == "none":
        return None
    layer, bias = model.output_layer, f"{model.output_layer}.bias"
    if bias not in personal.values:
        return None
    prior = replace(
        personal,
        masks={name: mask for name, mask in personal.masks.items() if name == layer},
        values={bias: personal.values[bias]},
        kept={},
    )
    pruning = replace(
        personal,
        masks={name: mask for name, mask in personal.masks.items() if name != layer},
        values={name: value for name, value in personal.values.items() if name != bias},
    )
    return prior, pruning


def answer(
    model: ImageModel,
    photos: Iterable[Photo],
    outputs: Mapping[str, int],
    adapted_on: Recordings | None = None,
    *,
    batch_size: int = 1,
    watcher: Watcher | None = None,
) -> Scene:
    """Runs labelled photos through the model as it is now; see `evaluate_photos`."""
    looked = Looked()
    logits: list[Tensor] = []
    labels: list[int] = []
    already_seen = 0

    def unseen() -> Iterator[Picture]:
        nonlocal already_seen
        for picture in usable_photos(photos, looked, watcher or Watcher()):
            if adapted_on is not None and adapted_on.holds(picture.sha256):
                already_seen += 1
                continue
            yield picture

    for batch in batched(unseen(), batch_size, watcher):
        logits.append(model.logits([picture.image for picture in batch]))
        labels += [outputs[picture.photo.label or ""] for picture in batch]
    together = torch.cat(logits) if logits else torch.empty(0, len(model.labels))
    return Scene(together, tuple(labels), already_seen, tuple(looked.skipped))
