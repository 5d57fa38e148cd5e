"""Which classes a user has, from a classifier's own unlabeled answers, and what the output layer
becomes when it knows them.

A classifier answers p(c|x) for data in which class c has the share t(c), that of its training
data. A user's photos have other shares. If pictures of a class look as they did in training, the
user's shares q are the most likely ones under

    L(q) = sum over photos of log( sum over classes of p(c|x)·q(c)/t(c) )

which needs no label and is concave in q, and the answers for this user are p(c|x)·q(c)/t(c),
normalised: log(q(c)/t(c)) added to the output layer's bias. q is found by EM (Saerens, Latinne,
Decaestecker, Neural Computation 14(1), 2002). A class that the photos give no reason to expect is
an output that the user never activates: it is pruned.

q belongs to the photos, not to a model. It is estimated from the dense model's answers, whose
p(c|x) can be trusted most, and holds for the pruned one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fpspeech.pruning.layers import PruningError

LEAST_PHOTOS = 0.5
"""A class of fewer expected photos than this is pruned: rounded, the user has none of it.

Among n photos a class that makes up more than 3/n of what the user photographs is missing by
chance in less than 5 % of cases: that is how rare a class is that may be pruned in error.
"""

SIGNIFICANCE = 0.01
"""How improbable so good a fit must be under the training shares before others are believed."""

PRUNED_BIAS = -(2.0**13)
"""The bias of a pruned output, whose weights are zero: its logit, whatever the picture.

It is the same number in float16 (which ends at 65504), bfloat16 and float32. Where the highest
logit is above -7446, exp(PRUNED_BIAS - highest) is exactly 0 in float64 and below: a softmax over
all classes has the same bits as one over the kept classes alone.
"""


@dataclass(frozen=True)
class Prior:
    """A user's shares of the classes beside those of the training data.

    shares, training: float64, shape (classes,), each of sum 1. photos: how many they were
    estimated from. log_likelihood: L of `shares`; that of `training` is 0.
    """

    shares: Tensor = field(repr=False)
    training: Tensor = field(repr=False)
    photos: int
    log_likelihood: float

    @property
    def p_value(self) -> float:
        """How probable so high a likelihood ratio is if the shares are those of training.

        The ratio test of Saerens et al.: 2·L is chi-square with classes - 1 degrees of freedom. A
        few photos of a thousand classes do not pass it, however sure the answers are.
        """
        freedom = torch.tensor((self.shares.numel() - 1) / 2, dtype=torch.float64)
        if freedom == 0:
            return 1.0
        ratio = torch.tensor(max(self.log_likelihood, 0.0), dtype=torch.float64)
        return float(torch.special.gammaincc(freedom, ratio))

    @property
    def differs(self) -> bool:
        """Whether the photos are reason enough to answer with other shares than in training."""
        return self.p_value < SIGNIFICANCE

    @property
    def kept(self) -> Tensor:
        """The classes that stay outputs, shape (classes,), bool: see `LEAST_PHOTOS`.

        All of them where the shares do not differ; the largest share always stays.
        """
        if not self.differs:
            return torch.ones_like(self.shares, dtype=torch.bool)
        # More than two classes a photo could all fall below half a photo.
        least = min(LEAST_PHOTOS, float(self.shares.max()) * self.photos)
        return self.shares * self.photos >= least


def estimate_prior(
    posteriors: Tensor,
    training: Tensor | None = None,
    *,
    rounds: int = 1000,
    tolerance: float = 0.001,
) -> Prior:
    """The most likely shares of the classes among unlabeled photos, by EM.

    posteriors: p(c|x) of each photo under the training shares, shape (photos, classes), rows of
    sum 1. training: shares in the training data, shape (classes,); by default equal. EM starts
    there and ends after `rounds`, or once no class gains or loses `tolerance` photos in a round.
    Raises PruningError without a photo, and for numbers that are no probabilities.
    """
    if posteriors.dim() != 2 or not posteriors.numel():
        raise PruningError(
            f"expected posteriors of shape (photos, classes), found {tuple(posteriors.shape)}"
        )
    photos, classes = posteriors.shape
    found = posteriors.detach().to("cpu", torch.float64)
    if training is None:
        training = torch.full((classes,), 1 / classes, dtype=torch.float64)
    training = training.detach().to("cpu", torch.float64)
    if training.shape != (classes,) or not bool((training > 0).all()) or not _sums_to_one(training):
        raise PruningError(
            f"expected a training share above 0 for each of {classes} classes, of sum 1, found "
            f"shape {tuple(training.shape)}, lowest {float(training.min()):g}, sum "
            f"{float(training.sum()):g}"
        )
    if not bool((found >= 0).all()) or not _sums_to_one(found):  # NaN is not >= 0
        raise PruningError("posteriors are no probabilities: expected rows >= 0 of sum 1")
    likelihoods = found / training  # p(x|c) up to a factor a photo
    shares = training
    for _ in range(rounds):
        before = shares
        # The mean over photos of each class's probability under the shares so far.
        shares = before * (likelihoods.T @ (1 / (likelihoods @ before))) / photos
        shares = shares / shares.sum()
        if float((shares - before).abs().max()) * photos < tolerance:
            break
    return Prior(shares, training, photos, float((likelihoods @ shares).log().sum()))


def _sums_to_one(values: Tensor) -> bool:
    return bool(((values.sum(-1) - 1).abs() < 1e-3).all())  # softmax in float16 is as exact


def log_prior_shift(prior: Prior) -> Tensor:
    """log(share / training share), what to add to each logit; float64, shape (classes,).

    Shares below `LEAST_PHOTOS` count as that many photos, so it is finite. All 0 where the shares
    do not differ.
    """
    if not prior.differs:
        return torch.zeros_like(prior.shares)
    floor = LEAST_PHOTOS / prior.photos
    return (prior.shares.clamp_min(floor) / prior.training).log()


def with_prior(logits: Tensor, prior: Prior) -> Tensor:
    """Logits, shape (..., classes), as the output layer with this prior gives them."""
    shifted = logits + log_prior_shift(prior).to(logits)
    return shifted.masked_fill(~prior.kept.to(logits.device), PRUNED_BIAS)


def output_layer_with_prior(weight: Tensor, bias: Tensor, prior: Prior) -> tuple[Tensor, Tensor]:
    """The mask and the bias of an output layer that answers with this prior.

    weight: shape (classes, inputs). bias: shape (classes,). Returns the mask, False in the rows of
    pruned classes, shape (1, classes, inputs) as masks have it, and the new bias, of the dtype of
    `bias`, `PRUNED_BIAS` where pruned. Raises PruningError when the layer has not as many outputs
    as the prior has classes.
    """
    classes = prior.shares.numel()
    if weight.dim() != 2 or weight.shape[0] != classes or bias.shape != (classes,):
        raise PruningError(
            f"expected an output layer of {classes} classes, found a weight of shape "
            f"{tuple(weight.shape)} and a bias of shape {tuple(bias.shape)}"
        )
    mask = prior.kept[:, None].expand(weight.shape)[None].contiguous()
    return mask, with_prior(bias.detach().cpu(), prior)
