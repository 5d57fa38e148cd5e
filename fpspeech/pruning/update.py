"""What may change after the mask, in closed form and without labels.

BatchNorm moments. Pruning shrinks and shifts what a convolution puts out, while the BatchNorm
behind it goes on normalising with the moments of the dense model. Estimating these anew from one
user's photos would be wrong: the stored moments are those of all classes, and the distance of a
user's few classes from them is what the classifier reads. So the *change* that pruning made is
undone instead: with the stored moments (m, v), and on the same images the moments of the
BatchNorm's input in the dense model (m_d, v_d) and in the pruned one (m_p, v_p),

    v' + eps = (v + eps)·v_p/v_d        m' = m_p - (m_d - m)·sqrt(v_p/v_d)

give the pruned channel, once normalised, the mean and the variance that the dense one has on these
images, and nothing else about the stored moments changes.

Matching one BatchNorm changes what all later ones see. One pass that measures every (m_p, v_p)
behind unmatched layers is therefore wrong for all but the first; see `match_batch_norms`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fpspeech.pruning.layers import PrunableLayer, PruningError
from fpspeech.pruning.pruner import apply_masks, evaluation_mode

DEAD = 1e-6
"""A channel whose variance is below this share of the stored one carries nothing to rescale."""

SWEEPS = 8
"""Most passes over the images that `match_batch_norms` makes by default."""

TOLERANCE = 0.01
"""Largest mismatch left by default, in standard deviations of a normalised dense channel."""


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each channel over a stream: items and positions together.

    mean, variance: float64 on the CPU, shape (channels,); the variance divides by `count`.
    """

    count: int
    mean: Tensor
    variance: Tensor

    def merged(self, other: Moments) -> Moments:
        """The moments of both streams together (Chan, Golub, LeVeque 1983)."""
        count = self.count + other.count
        distance = other.mean - self.mean
        share = other.count / count
        within = self.variance * (1 - share) + other.variance * share
        between = distance.square() * share * (1 - share)
        return Moments(count, self.mean + distance * share, within + between)


class BatchNormObserver:
    """Collects the moments of what every BatchNorm of a network takes in, in evaluation mode.

    BatchNorms without stored moments normalise by the batch itself and are left out. Nothing is
    attached to the network outside `counting()`.
    """

    def __init__(self, network: nn.Module):
        self.norms: dict[str, _BatchNorm] = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        }
        self._moments: dict[str, Moments] = {}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts the inputs of every forward pass inside the block."""
        handles = []
        try:
            for name, norm in self.norms.items():
                handles.append(norm.register_forward_pre_hook(self._hook(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def moments(self) -> dict[str, Moments]:
        """The moments so far of every BatchNorm that saw input, by name, in order of use.

        Raises PruningError, naming the layer, when an input was NaN or infinite.
        """
        for name, found in self._moments.items():
            if not bool(torch.isfinite(found.mean).all() & torch.isfinite(found.variance).all()):
                raise PruningError(f"the input of {name} was NaN or infinite: check the data")
        return dict(self._moments)

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        @torch.no_grad()
        def count_input(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs: Tensor = args[0]  # (B, C, ...)
            values = inputs.transpose(0, 1).flatten(1)  # (C, positions)
            if values.dtype not in (torch.float32, torch.float64):
                values = values.float()
            # Two passes a batch in its own precision, batches together in float64.
            variance, mean = torch.var_mean(values, dim=1, correction=0)
            batch = Moments(values.shape[1], mean.cpu().double(), variance.cpu().double())
            before = self._moments.get(name)
            self._moments[name] = batch if before is None else before.merged(batch)

        return count_input


def matched_moments(norm: _BatchNorm, dense: Moments, pruned: Moments) -> tuple[Tensor, Tensor]:
    """The running mean and variance under which `pruned` normalises to what `dense` does.

    The formula stands at the top of this module. Where a channel hardly varies in one of the two
    models (`DEAD`) there is no scale to match: it keeps its variance and only its mean is matched.
    A variance never falls below zero. Returns float64 on the CPU, shape (channels,) each.
    """
    mean, variance = _stored(norm)
    floor = DEAD * (variance + norm.eps)
    dead = (dense.variance < floor) | (pruned.variance < floor)
    ratio = (pruned.variance / dense.variance).masked_fill(dead, 1.0)
    matched_variance = ((variance + norm.eps) * ratio - norm.eps).clamp_min(0)
    matched_variance = torch.where(dead, variance, matched_variance)
    # The scale that the matched variance really has, should the clamp have moved it.
    scale = ((matched_variance + norm.eps) / (variance + norm.eps)).sqrt()
    return pruned.mean - (dense.mean - mean) * scale, matched_variance


def mismatch(norm: _BatchNorm, values: Mapping[str, Tensor], dense: Moments, now: Moments) -> float:
    """How far a channel is from its dense self at worst, both normalised.

    values: `running_mean` and `running_var` that the layer runs with. Of the distance between the
    means and that between the standard deviations the larger counts, in the dense channel's
    standard deviations; dead channels count by their mean alone.
    """
    mean, variance = _stored(norm)
    floor = DEAD * (variance + norm.eps)
    alive = (dense.variance >= floor) & (now.variance >= floor)
    before = (variance + norm.eps).sqrt()
    after = (values["running_var"].double() + norm.eps).sqrt()
    unit = (dense.variance.sqrt() / before).clamp_min(DEAD**0.5)
    shift = (now.mean - values["running_mean"].double()) / after - (dense.mean - mean) / before
    spread = now.variance.sqrt() / after - dense.variance.sqrt() / before
    worst = torch.maximum(shift.abs(), spread.abs() * alive) / unit
    return float(worst.max())


def match_batch_norms(
    network: nn.Module,
    layers: Sequence[PrunableLayer],
    masks: Mapping[str, Tensor],
    dense: Mapping[str, Moments],
    run: Callable[[], object],
    *,
    sweeps: int = SWEEPS,
    tolerance: float = TOLERANCE,
) -> dict[str, Tensor]:
    """BatchNorm moments for the pruned network, matched to the dense one's on the same images.

    dense: what a `BatchNormObserver` counted while the images ran through the dense network.
    run: streams the same images through `network` once; the masks are in force meanwhile.

    All BatchNorms are measured in one pass, with the matched values of the pass before in force,
    and matched again, until none is further from its dense self than `tolerance` (standard
    deviations of the normalised dense channel) or `sweeps` passes are done. After pass k the first
    k in line are exact, because nothing that reaches them changes any more, so as many passes as
    there are BatchNorms in line are exact throughout; the later ones come close much sooner.

    Returns tensors by their names in the state dict, for `apply_masks(..., network=, values=)`;
    BatchNorms that pruning does not reach are not among them. The network is left as it was.
    Raises PruningError when the images of `run` are not those of `dense`.
    """
    if sweeps < 1:
        raise PruningError(f"sweeps: expected 1 or more, found {sweeps}")
    values: dict[str, Tensor] = {}
    for _ in range(sweeps):
        observer = BatchNormObserver(network)
        with (
            evaluation_mode(network),
            apply_masks(layers, masks, network=network, values=values),
            observer.counting(),
            torch.inference_mode(),
        ):
            run()
        seen = observer.moments()
        _check_same_images(dense, seen)
        worst = max(
            (
                mismatch(norm, _in_force(name, norm, values), dense[name], seen[name])
                for name, norm in observer.norms.items()
                if name in seen
            ),
            default=0.0,
        )
        if worst <= tolerance:
            break
        values = {
            f"{name}.{key}": tensor
            for name, now in seen.items()
            if not _same(dense[name], now)
            for key, tensor in _matched(observer.norms[name], dense[name], now).items()
        }
    return values


def _matched(norm: _BatchNorm, dense: Moments, now: Moments) -> dict[str, Tensor]:
    assert norm.running_mean is not None  # as the observer chose them
    kind = norm.running_mean.dtype
    mean, variance = matched_moments(norm, dense, now)
    return {"running_mean": mean.to(kind), "running_var": variance.to(kind)}


def _in_force(name: str, norm: _BatchNorm, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    mean, variance = _stored(norm)
    return {
        "running_mean": values.get(f"{name}.running_mean", mean),
        "running_var": values.get(f"{name}.running_var", variance),
    }


def _stored(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.detach().cpu().double(), norm.running_var.detach().cpu().double()


def _same(one: Moments, other: Moments) -> bool:
    """Whether pruning does not reach this layer: the same bits from the same batches."""
    return torch.equal(one.mean, other.mean) and torch.equal(one.variance, other.variance)


def _check_same_images(dense: Mapping[str, Moments], pruned: Mapping[str, Moments]) -> None:
    odd = [
        name
        for name in dense.keys() | pruned.keys()
        if name not in dense or name not in pruned or dense[name].count != pruned[name].count
    ]
    if odd:
        name = min(odd)
        counts = [moments[name].count if name in moments else 0 for moments in (dense, pruned)]
        raise PruningError(
            f"{name} saw {counts[0]} positions in the dense model and {counts[1]} in the pruned "
            "one: both must see the same images"
        )
