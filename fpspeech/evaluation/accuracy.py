"""Accuracy of a classifier for one user: four numbers, and why one would not do.

Choosing among a user's few classes is easier than among all of a model's, so an accuracy says
nothing before it says among which. Dense and pruned are therefore each measured twice on the same
photos, and a gain counts only against the dense model among the same classes. An output prior
restricts the answers, too, by what it estimated: where a model has one, what the prior does to the
dense model and what pruning does are measured apart, so that no sum is taken for a gain of pruning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fpspeech.evaluation.bootstrap import Interval, bootstrap_interval, paired_comparison


@dataclass(frozen=True)
class Accuracy:
    """The share of photos that are classified right, with its 95 % bootstrap over photos.

    right: shape (photos,). among: how many classes the answer was chosen from.
    """

    right: NDArray[np.bool_]
    rate: float
    interval: Interval
    among: int


@dataclass(frozen=True)
class AccuracyChange:
    """Accuracy of one model minus that of another on the same photos; positive is better.

    low, high: of the paired 95 % bootstrap. probability_better: share of resamples in which it
    is better, a tie counting one half.
    """

    difference: float
    low: float
    high: float
    probability_better: float


def accuracy(
    logits: Tensor, labels: Sequence[int], *, among: Sequence[int] | None = None, seed: int = 0
) -> Accuracy:
    """How often the highest logit is the right one.

    logits: shape (photos, classes). labels: the right class of each photo. among: the classes to
    choose from; by default all. Raises ValueError without photos, for lengths that differ, and
    for a label that is not among the classes to choose from.
    """
    photos, classes = logits.shape
    chosen = list(range(classes)) if among is None else sorted(set(among))
    if photos == 0 or photos != len(labels):
        raise ValueError(f"expected a label a photo, found {photos} photos, {len(labels)} labels")
    if odd := set(labels) - set(chosen):
        raise ValueError(
            f"class {min(odd)} is right for a photo but not among the {len(chosen)} classes to "
            "choose from"
        )
    answers = np.array(chosen)[logits[:, chosen].argmax(1).numpy()]
    right = answers == np.asarray(labels)
    errors = bootstrap_interval(~right, np.ones(photos), seed=seed)
    interval = Interval(1 - errors.high, 1 - errors.low)
    return Accuracy(right, float(right.mean()), interval, len(chosen))


def accuracy_change(before: Accuracy, after: Accuracy, *, seed: int = 0) -> AccuracyChange:
    """Compares two models on the same photos, choosing among the same classes.

    Raises ValueError when they chose among different classes: such a difference says nothing
    about the models.
    """
    if before.among != after.among:
        raise ValueError(
            f"accuracies among {before.among} and among {after.among} classes do not compare"
        )
    paired = paired_comparison(~before.right, ~after.right, np.ones(before.right.size), seed=seed)
    return AccuracyChange(
        # 0.0 - x: no difference must not read -0.0
        0.0 - paired.difference,
        0.0 - paired.high,
        0.0 - paired.low,
        paired.probability_better,
    )


@dataclass(frozen=True)
class FourAccuracies:
    """Dense and pruned, each among all classes and among the user's, on the same photos."""

    dense_all: Accuracy
    pruned_all: Accuracy
    dense_user: Accuracy
    pruned_user: Accuracy
    change_all: AccuracyChange
    change_user: AccuracyChange

    @property
    def gain_of_restricting(self) -> float:
        """What choosing among the user's classes alone gives the dense model; pruning has no part
        in it."""
        return self.dense_user.rate - self.dense_all.rate


def four_accuracies(
    dense: Tensor, pruned: Tensor, labels: Sequence[int], classes: Sequence[int], *, seed: int = 0
) -> FourAccuracies:
    """Measures both models on a user's test photos.

    dense, pruned: logits of the same photos, shape (photos, classes). labels: the right class of
    each. classes: the user's. Raises the errors of `accuracy`.
    """
    dense_all, pruned_all = (accuracy(each, labels, seed=seed) for each in (dense, pruned))
    dense_user, pruned_user = (
        accuracy(each, labels, among=classes, seed=seed) for each in (dense, pruned)
    )
    return FourAccuracies(
        dense_all,
        pruned_all,
        dense_user,
        pruned_user,
        accuracy_change(dense_all, pruned_all, seed=seed),
        accuracy_change(dense_user, pruned_user, seed=seed),
    )


@dataclass(frozen=True)
class Step:
    """What one change to a model does, among all classes and among the user's."""

    all: AccuracyChange
    user: AccuracyChange


@dataclass(frozen=True)
class Decomposition:
    """A pruned model with an output prior, taken apart: beside `FourAccuracies`.

    dense_prior: the dense model with the prior. pruned: the pruned one without it. prior: from
    dense to dense with the prior; no part of it is pruning's. pruning: from dense to pruned, both
    without. pruning_with_prior: from dense to pruned, both with the prior.
    """

    dense_prior_all: Accuracy
    dense_prior_user: Accuracy
    pruned_all: Accuracy
    pruned_user: Accuracy
    prior: Step
    pruning: Step
    pruning_with_prior: Step


def decomposition(
    dense: Tensor,
    dense_prior: Tensor,
    pruned: Tensor,
    pruned_prior: Tensor,
    labels: Sequence[int],
    classes: Sequence[int],
    *,
    seed: int = 0,
) -> Decomposition:
    """Measures what the prior and what pruning do; see `four_accuracies` for the arguments."""
    prior = four_accuracies(dense, dense_prior, labels, classes, seed=seed)
    pruning = four_accuracies(dense, pruned, labels, classes, seed=seed)
    together = four_accuracies(dense_prior, pruned_prior, labels, classes, seed=seed)
    return Decomposition(
        dense_prior_all=prior.pruned_all,
        dense_prior_user=prior.pruned_user,
        pruned_all=pruning.pruned_all,
        pruned_user=pruning.pruned_user,
        prior=Step(prior.change_all, prior.change_user),
        pruning=Step(pruning.change_all, pruning.change_user),
        pruning_with_prior=Step(together.change_all, together.change_user),
    )
