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
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fpspeech.pruning.applied import apply_masks
from fpspeech.pruning.layers import PrunableLayer, PruningError
from fpspeech.pruning.pruner import evaluation_mode

DEAD = 1e-6
"""A channel whose variance is below this share of the stored one carries nothing to rescale."""

Batch = Callable[[], object]
"""Runs one batch of images through the network."""


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


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorms of a network by name; those without stored moments have none to match."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def measure_moments(network: nn.Module, batches: Sequence[Batch]) -> dict[str, Moments]:
    """The moments of what every BatchNorm takes in, by name, while `batches` run, each once.

    In evaluation mode and without gradients; the network is left as it was. Raises PruningError,
    naming the layer, when an input was NaN or infinite.
    """
    found: dict[str, Moments] = {}

    def count(name: str, batch: Moments) -> None:
        found[name] = found[name].merged(batch) if name in found else batch

    with evaluation_mode(network), _counting(network, count), torch.inference_mode():
        for batch in batches:
            batch()
    for name, moments in found.items():
        _check_finite(name, moments)
    return found


def matched_moments(norm: _BatchNorm, dense: Moments, pruned: Moments) -> tuple[Tensor, Tensor]:
    """The running mean and variance under which `pruned` normalises to what `dense` does.

    The formula stands at the top of this module. Where a channel hardly varies in one of the two
    models (`DEAD`) there is no scale to match: it keeps its variance and only its mean is matched.
    A variance never falls below zero. Returns float64 on the CPU, shape (channels,) each.
    """
    assert norm.running_mean is not None  # as `batch_norms` chose them
    assert norm.running_var is not None
    mean, variance = norm.running_mean.cpu().double(), norm.running_var.cpu().double()
    floor = DEAD * (variance + norm.eps)
    dead = (dense.variance < floor) | (pruned.variance < floor)
    ratio = pruned.variance / dense.variance
    matched = ((variance + norm.eps) * ratio - norm.eps).clamp_min(0)
    matched = torch.where(dead, variance, matched)
    # The scale that the matched variance really has, should the clamp have moved it.
    scale = ((matched + norm.eps) / (variance + norm.eps)).sqrt()
    return pruned.mean - (dense.mean - mean) * scale, matched


def match_batch_norms(
    network: nn.Module,
    layers: Sequence[PrunableLayer],
    masks: Mapping[str, Tensor],
    batches: Sequence[Batch],
    *,
    kept: Mapping[str, Tensor] | None = None,
    values: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """BatchNorm moments for the pruned network, matched to the dense one's on the same images.

    batches: each runs one batch of images through `network`, as often as it is called, with the
    same result every time. They run once through the dense network and then through the pruned
    one, where every BatchNorm is measured behind BatchNorms that are matched already. That takes
    nearly as many passes as there are BatchNorms in line, each up to the one that is measured;
    a single batch takes one pass, since its moments are complete as soon as it reaches a layer.
    kept, values: as in `apply_masks`.

    One pass that measures all layers at once, or a few of them, is no short cut: what a layer
    takes in changes with every layer matched before it, and the errors grow from layer to layer,
    so that it can be worse than not to match at all (measured: recipes/digits/README.md).

    Returns tensors by their names in the state dict, for `apply_masks(..., network=, values=)`;
    BatchNorms that pruning does not reach are not among them. The network is left as it was.
    Raises PruningError without a batch, when a BatchNorm runs twice in one pass, and when an
    input is not finite.
    """
    if not batches:
        raise PruningError("no batch to match BatchNorms on: the data is empty")
    dense = measure_moments(network, batches)
    norms = {name: norm for name, norm in batch_norms(network).items() if name in dense}
    frontier = _Frontier(norms, dense, batches)
    # Their own values are applied as an update too, so that leaving the block puts them back.
    own = {
        f"{name}.{key}": tensor.clone()
        for name, norm in norms.items()
        for key, tensor in norm.named_buffers(recurse=False)
        if key != "num_batches_tracked"
    }
    with (
        evaluation_mode(network),
        apply_masks(layers, masks, network=network, values={**(values or {}), **own}, kept=kept),
        _counting(network, frontier.count),
        torch.inference_mode(),
    ):
        frontier.advance()
    return frontier.values


class _Reached(Exception):
    """The batch has counted at the BatchNorm that is measured; it waits for the others."""


class _Frontier:
    """The BatchNorm that is measured now: those before it are matched, those behind wait.

    values: what was matched so far, by names of the state dict; in force in the network, too.
    """

    def __init__(
        self,
        norms: Mapping[str, _BatchNorm],
        dense: Mapping[str, Moments],
        batches: Sequence[Batch],
    ):
        self.values: dict[str, Tensor] = {}
        self._norms = norms
        self._dense = dense
        self._batches = batches
        self._done: set[str] = set()
        self._counted: dict[int, Moments] = {}  # at the frontier, by the number of the batch
        self._running = 0

    def advance(self) -> None:
        """Runs the batches in turn, each up to the frontier, until one comes to its end."""
        while True:
            for number, batch in enumerate(self._batches):
                if number in self._counted:
                    continue
                self._running = number
                try:
                    batch()
                except _Reached:
                    continue
                return

    def count(self, name: str, moments: Moments) -> None:
        """Counts the running batch; the last one to come matches the BatchNorm and goes on."""
        if name in self._done:
            return
        self._counted[self._running] = moments
        if len(self._counted) < len(self._batches):
            raise _Reached
        in_order = [self._counted[number] for number in range(len(self._batches))]
        self._match(name, reduce(Moments.merged, in_order))
        self._done.add(name)
        self._counted.clear()

    def _match(self, name: str, pruned: Moments) -> None:
        dense, norm = self._dense[name], self._norms[name]
        _check_finite(name, pruned)
        if pruned.count != dense.count:
            raise PruningError(
                f"{name} saw {dense.count} positions in the dense model and {pruned.count} in the "
                "pruned one: expected batches that repeat themselves, and no BatchNorm that runs "
                "twice in one pass"
            )
        if torch.equal(dense.mean, pruned.mean) and torch.equal(dense.variance, pruned.variance):
            return  # pruning does not reach it
        matched = matched_moments(norm, dense, pruned)
        for key, value in zip(("running_mean", "running_var"), matched, strict=True):
            stored: Tensor = getattr(norm, key)
            stored.copy_(value)
            self.values[f"{name}.{key}"] = stored.clone()


@contextmanager
def _counting(network: nn.Module, count: Callable[[str, Moments], None]) -> Iterator[None]:
    """Calls `count` with the moments of every BatchNorm's input, before the BatchNorm runs."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def count_input(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs: Tensor = args[0]  # (B, C, ...)
            values = inputs.transpose(0, 1).flatten(1)  # (C, positions)
            if values.dtype not in (torch.float32, torch.float64):
                values = values.float()
            # Two passes over a batch in its own precision; batches together in float64.
            variance, mean = torch.var_mean(values, dim=1, correction=0)
            count(name, Moments(values.shape[1], mean.cpu().double(), variance.cpu().double()))

        return count_input

    handles = []
    try:
        for name, norm in batch_norms(network).items():
            handles.append(norm.register_forward_pre_hook(hook(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_finite(name: str, moments: Moments) -> None:
    if not bool(torch.isfinite(moments.mean).all() & torch.isfinite(moments.variance).all()):
        raise PruningError(f"the input of {name} was NaN or infinite: check the data")
