"""Sequential order: a layer is pruned for the inputs that its pruned predecessors give it.

The independent order measures every layer's input x in the dense model, in one pass. Here the
network is pruned a stage at a time, in order of execution: with x̃ the input of a layer in the
network as it is pruned so far,

    mask: from the statistics of x̃        weights: min E‖Wx − W'x̃‖² + λ‖W − W'‖²

so that a layer also undoes, as far as it can, what pruning the layers before it did. For that
every window is run again for every stage: through the dense network, where it leaves its x, and
through the pruned one, where x̃ meets it and both are summed up (Σx̃x̃ᵀ, Σxx̃ᵀ). Each run ends at the
stage's last layer. In memory is one window at a time and the sums of one stage; the price is
nearly as many passes as there are stages. The first stage takes one run a window, since nothing
is pruned before it, and so do all where the kept weights are not updated.

The two networks are one: its pruned layers have two sets of weights, and which one is in force is
a matter of a pointer a layer. Masks put on and taken off would copy all weights twice a window,
and a copy of the whole network would hold what is never pruned a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fpspeech.pruning.config import PruningConfig
from fpspeech.pruning.layers import PrunableLayer, PruningError
from fpspeech.pruning.pruner import (
    PrunedLayers,
    evaluation_mode,
    products_for,
    prune_layers,
)
from fpspeech.pruning.replay import (
    Hook,
    Replay,
    Stage,
    execution_stages,
    hooked,
    run_up_to,
)
from fpspeech.pruning.statistics import (
    InputStatistics,
    Observer,
    Valid,
    counted_positions,
    input_of,
)


def prune_sequentially(
    network: nn.Module,
    layers: Sequence[PrunableLayer],
    windows: Callable[[], Iterable[Replay]],
    config: PruningConfig,
    *,
    stages: Sequence[Sequence[str]] | None = None,
    generic: Mapping[str, InputStatistics] | None = None,
) -> PrunedLayers:
    """Prunes `layers` stage by stage for the inputs they see behind those pruned before.

    windows: gives the passes over the data, anew for every stage and each time the same; while
    they are made, the dense weights are in force. stages: see `execution_stages`. generic: see
    `prune_layers`. The network is left as it was. Raises PruningError without a window.
    """
    passes = iter(windows())
    first = next(passes, None)
    if first is None:
        raise PruningError("no batch to observe: the data is empty")
    with evaluation_mode(network):
        planned = execution_stages(layers, first, stages)
    pruner = SequentialPruner(network, layers, config, generic=generic)
    again: Iterable[Replay] = with_first(first, passes)
    del first
    for stage in planned:
        pruner.prune(stage, again)
        again = windows()
    return pruner.pruned


def with_first(first: Replay, rest: Iterator[Replay]) -> Iterator[Replay]:
    """The stream that `first` was taken from; once it has run, it is let go."""
    yield first
    del first
    yield from rest


def prune_batches(
    network: nn.Module,
    layers: Sequence[PrunableLayer],
    batches: Iterable[Any],
    config: PruningConfig,
    forward: Callable[[nn.Module, Any], object],
) -> PrunedLayers:
    """`prune_sequentially` on batches that can be iterated again; forward: as in `observe`."""
    if iter(batches) is batches:
        raise PruningError(
            "in sequential order the data streams by once a stage: expected a list of batches, or "
            f"what else starts anew when it is iterated, found {type(batches).__name__}"
        )

    def windows() -> Iterator[Replay]:
        return (Replay(partial(forward, network, batch)) for batch in batches)

    return prune_sequentially(network, layers, windows, config)


class SequentialPruner:
    """Prunes a network one stage after the other; between them, and in the end, it is dense.

    finished: what earlier stages came to, where a run goes on. generic: see `prune_layers`.
    Raises PruningError for a config that sequential order cannot work with.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[PrunableLayer],
        config: PruningConfig,
        finished: PrunedLayers | None = None,
        generic: Mapping[str, InputStatistics] | None = None,
    ):
        for pattern, _ in config.overrides:
            if not any(fnmatchcase(layer.name, pattern) for layer in layers):
                raise PruningError(
                    f"no pruned layer is named {pattern!r}, for which a sparsity was given: layers "
                    f"are named such as {layers[0].name!r}"
                )
        self._network = network
        self._layers = tuple(layers)
        self._config = replace(config, order="sequential")
        self._generic = generic
        self._pruned = PrunedLayers({}, {}, {})
        self._weights = _TwoWeights(network)
        if finished is not None:
            self._put_in(finished)

    @property
    def pruned(self) -> PrunedLayers:
        """What all stages so far came to, in the order of the layers."""
        masks, kept = self._pruned.masks, self._pruned.kept
        names = [layer.name for layer in self._layers]
        return PrunedLayers(
            {name: masks[name] for name in names if name in masks},
            {name: kept[name] for name in names if name in kept},
            dict(self._pruned.values),
        )

    def prune(self, stage: Stage, replays: Iterable[Replay]) -> None:
        """Measures the stage's layers on every window, and prunes them.

        While `replays` go on to the next one, the dense weights are in force.
        Raises PruningError, naming the layer, and where there is no window.
        """
        products = products_for(stage.layers, self._config)
        stride = self._config.product_stride
        observer = Observer(stage.layers, products, stride)
        paired = None
        if self._config.update != "none" and self._pruned.masks:
            fitted = [layer for layer in stage.layers if layer.name in products]
            paired = _PairedInputs(fitted, stride) if fitted else None
        seen = 0
        with evaluation_mode(self._network):
            for replay in replays:
                self._run(stage, replay, observer, paired)
                seen += 1
        if not seen:
            raise PruningError("no batch to observe: the data is empty")
        found = prune_layers(
            stage.layers,
            observer.statistics(),
            self._config_for(stage),
            self._generic,
            cross=paired.moments() if paired is not None else None,
            dense_mean=paired.dense_mean() if paired is not None else None,
        )
        self._put_in(found)

    def _run(
        self, stage: Stage, replay: Replay, observer: Observer, paired: _PairedInputs | None
    ) -> None:
        if paired is None:
            with self._weights.pruned(), observer.counting(replay.valid):
                run_up_to(stage, replay)
            return
        with paired.keeping():
            run_up_to(stage, replay)
        with (
            self._weights.pruned(),
            observer.counting(replay.valid),
            paired.meeting(replay.valid),
        ):
            run_up_to(stage, replay)

    def _config_for(self, stage: Stage) -> PruningConfig:
        overrides = tuple(
            (pattern, sparsity)
            for pattern, sparsity in self._config.overrides
            if any(fnmatchcase(name, pattern) for name in stage.names)
        )
        return replace(self._config, overrides=overrides)

    def _put_in(self, found: PrunedLayers) -> None:
        layers = [layer for layer in self._layers if layer.name in found.masks]
        self._weights.add(layers, found)
        self._pruned.masks.update(found.masks)
        self._pruned.kept.update(found.kept)
        self._pruned.values.update(found.values)


class _TwoWeights:
    """A network with two states of its weights: dense, and pruned so far."""

    def __init__(self, network: nn.Module):
        self._network = network
        self._layers: list[PrunableLayer] = []
        # The very tensors of the network by name, and both memories that they may point to.
        self._states: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def add(self, layers: Sequence[PrunableLayer], found: PrunedLayers) -> None:
        """Takes in what a stage came to; the network stays dense."""
        tensors = self._network.state_dict(keep_vars=True)
        names = [
            f"{layer.name}.{name}" if layer.name else name
            for layer in layers
            for name in layer.stored()
        ]
        with found.apply(layers, self._network):
            for name in (*names, *found.values):
                tensor: Tensor = tensors[name]
                self._states[name] = (tensor, tensor.data, tensor.detach().clone())
        self._layers += layers

    @contextmanager
    def pruned(self) -> Iterator[None]:
        """Has the pruned weights in force inside the block, the dense ones again behind it."""
        try:
            for tensor, _, pruned in self._states.values():
                tensor.data = pruned
            yield
        finally:
            for tensor, dense, _ in self._states.values():
                tensor.data = dense
            for layer in self._layers:
                layer.put_back(layer.stored())  # copies nothing: what is computed from them follows


class _PairedInputs:
    """E[x x̃ᵀ] of layers: x in the dense network and x̃ in the pruned one, on the same windows."""

    def __init__(self, layers: Sequence[PrunableLayer], stride: int):
        self._layers = tuple(layers)
        self._stride = stride
        self._kept: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
        self._sums = {layer.name: _CrossSums() for layer in layers}

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keeps the inputs x of the pass inside the block."""

        def keeper(layer: PrunableLayer) -> Hook:
            def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                # A copy: what comes after the layer may write into its input.
                self._kept[layer.name].append(input_of(args, kwargs).clone())

            return keep

        with hooked({layer: keeper(layer) for layer in self._layers}):
            yield

    @contextmanager
    def meeting(self, valid: Valid | None) -> Iterator[None]:
        """Sums up x x̃ᵀ for the inputs x̃ of the pass inside the block; x is forgotten.

        At the same positions as an `Observer` of the same stride counts its products.
        """

        def meeter(layer: PrunableLayer) -> Hook:
            lengths = valid(layer.name) if valid is not None else None

            def meet(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                pruned = input_of(args, kwargs)
                dense = self._kept[layer.name].pop(0) if self._kept[layer.name] else None
                if dense is None or dense.shape != pruned.shape:
                    raise _not_repeated(layer, dense, pruned)
                stride = 1 if layer.tokens else self._stride
                self._sums[layer.name].add(layer, dense, pruned, lengths, stride)

            return meet

        with hooked({layer: meeter(layer) for layer in self._layers}):
            yield
        for layer in self._layers:
            if self._kept[layer.name]:
                raise _not_repeated(layer, self._kept[layer.name][0], None)

    def dense_mean(self) -> dict[str, Tensor]:
        """E[x] on the CPU by layer name, shape (groups, inputs), over the same positions."""
        return {
            name: (sums.dense_total / sums.product_count).cpu()
            for name, sums in self._sums.items()
            if sums.dense_total is not None
        }

    def moments(self) -> dict[str, Tensor]:
        """E[x x̃ᵀ] on the CPU by layer name, shape (groups, inputs, inputs)."""
        return {
            name: (sums.products / sums.product_count).cpu()
            for name, sums in self._sums.items()
            if sums.products is not None
        }


@dataclass
class _CrossSums:
    count: int = 0
    products: Tensor | None = None
    dense_total: Tensor | None = None
    product_count: int = 0

    def add(
        self,
        layer: PrunableLayer,
        dense: Tensor,
        pruned: Tensor,
        lengths: Sequence[int] | None,
        stride: int,
    ) -> None:
        before, after = (counted_positions(layer, each, lengths) for each in (dense, pruned))
        for one, other in zip(before, after, strict=True):
            for x, y in zip(
                one.rows(stride, self.count), other.rows(stride, self.count), strict=True
            ):
                x, y = ((r if r.dtype == torch.float64 else r.float()) for r in (x, y))
                product = x @ y.transpose(1, 2)  # (groups, inputs of x, inputs of x̃)
                total = x.sum(-1)
                self.products = product if self.products is None else self.products + product
                self.dense_total = total if self.dense_total is None else self.dense_total + total
                self.product_count += x.shape[-1]
            self.count += one.count


def _not_repeated(
    layer: PrunableLayer, dense: Tensor | None, pruned: Tensor | None
) -> PruningError:
    shapes = ["none" if each is None else str(tuple(each.shape)) for each in (dense, pruned)]
    return PruningError(
        f"{layer.name} took in {shapes[0]} in the dense network and {shapes[1]} in the pruned one: "
        "expected a pass that repeats itself whatever the weights are"
    )
