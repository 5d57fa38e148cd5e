"""The one loop: stream data through a model, score its weights, make the masks, apply them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from fpspeech.pruning.applied import Applied, apply_masks
from fpspeech.pruning.config import PruningConfig
from fpspeech.pruning.layer_update import is_updated, update_layer
from fpspeech.pruning.layers import Exclusion, PrunableLayer, PruningError, Selection, select_layers
from fpspeech.pruning.least_squares import can_fit
from fpspeech.pruning.masks import global_masks, mask_for
from fpspeech.pruning.scores import SCORES
from fpspeech.pruning.shrinkage import shrunk
from fpspeech.pruning.statistics import InputStatistics, Observer


def select(model: nn.Module, config: PruningConfig, exclude: Mapping[str, str]) -> Selection:
    """The layers that `config` prunes; those an N:M pattern does not fit join the exclusions."""
    selection = select_layers(model, exclude)
    if config.n_of_m is None:
        return selection
    _, of = config.n_of_m
    fits = tuple(layer for layer in selection.layers if layer.shape[2] % of == 0)
    misfits = tuple(
        Exclusion(layer.name, f"its {layer.shape[2]} inputs do not divide by {of}", size=layer.size)
        for layer in selection.layers
        if layer.shape[2] % of
    )
    if not fits:
        raise PruningError(f"no layer has inputs that divide by {of} for {config.group} pruning")
    return Selection(fits, selection.excluded + misfits)


@torch.inference_mode()
def observe(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[PrunableLayer],
    forward: Callable[[nn.Module, Any], object] | None = None,
    products: Container[str] = (),
    product_stride: int = 1,
) -> dict[str, InputStatistics]:
    """Streams batches through the model once, in evaluation mode, and counts the layers' inputs.

    forward: how to call the model with a batch; by default a tensor is the only argument, a
    tuple the positional arguments and a mapping the keyword arguments. products,
    product_stride: see `products_for` and `Observer`. The model's training flags are put back.
    Raises PruningError without a batch.
    """
    observer = Observer(layers, products, product_stride)
    seen = 0
    with evaluation_mode(model), observer.counting():
        for batch in batches:
            (forward or _call)(model, batch)
            seen += 1
    if not seen:
        raise PruningError("no batch to observe: the data is empty")
    return observer.statistics()


def _call(model: nn.Module, batch: Any) -> object:
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(*batch)
    return model(batch)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts every module in evaluation mode, and every flag back in the end."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


@torch.no_grad()
def make_masks(
    layers: Sequence[PrunableLayer],
    statistics: Mapping[str, InputStatistics],
    config: PruningConfig,
    generic: Mapping[str, InputStatistics] | None = None,
) -> dict[str, Tensor]:
    """Scores every weight and prunes the least; no weight is changed.

    generic: other people's statistics, by layer name, for a score that contrasts the two.
    Returns masks by layer name, True where kept, shape (groups, outputs, inputs), on the CPU.
    Raises PruningError, naming the layer, when a score needs statistics that are not there.
    """
    _check_overrides(layers, config)
    return _masks(layers, statistics, config, generic)


def _masks(
    layers: Sequence[PrunableLayer],
    statistics: Mapping[str, InputStatistics],
    config: PruningConfig,
    generic: Mapping[str, InputStatistics] | None,
) -> dict[str, Tensor]:
    if config.group == "global":
        return global_masks(
            {layer.name: _score(layer, statistics, config, generic) for layer in layers},
            config.sparsity,
            config.cap,
        )
    return {
        layer.name: mask_for(
            _score(layer, statistics, config, generic),
            config.group,
            config.sparsity_for(layer.name),
        )
        for layer in layers
    }


def _check_overrides(layers: Sequence[PrunableLayer], config: PruningConfig) -> None:
    for pattern, _ in config.overrides:
        if not any(fnmatchcase(layer.name, pattern) for layer in layers):
            raise PruningError(
                f"no pruned layer is named {pattern!r}, for which a sparsity was given: layers "
                f"are named such as {layers[0].name!r}"
            )


def products_for(layers: Sequence[PrunableLayer], config: PruningConfig) -> frozenset[str]:
    """Names of the layers whose Σxxᵀ the score or the update of `config` needs."""
    if config.update == "none" and not SCORES[config.score].needs_products:
        return frozenset()
    return frozenset(layer.name for layer in layers if can_fit(layer))


def _score(
    layer: PrunableLayer,
    statistics: Mapping[str, InputStatistics],
    config: PruningConfig,
    generic: Mapping[str, InputStatistics] | None,
) -> Tensor:
    score = SCORES[config.score]
    found = statistics.get(layer.name)
    if score.needs_statistics and found is None:
        raise PruningError(
            f"{layer.name} saw no input while the data streamed by, so the score "
            f"{config.score!r} cannot rate it: exclude it, or use the score 'magnitude'"
        )
    # A seed of its own a layer: the same bits whichever other layers are pruned.
    seed = config.seed * 2**32 + zlib.crc32(layer.name.encode())
    weight = layer.weight().to("cpu", torch.float32)
    others = (_generic_of(layer, generic, config),) if score.needs_generic else ()
    values = score.function(weight, found, seed, *others).float()
    if not bool(torch.isfinite(values).all()):
        raise PruningError(f"the score of {layer.name} is not finite: check its weights")
    return values


def _generic_of(
    layer: PrunableLayer,
    generic: Mapping[str, InputStatistics] | None,
    config: PruningConfig,
) -> InputStatistics:
    if generic is None or layer.name not in generic:
        contrasts = SCORES[config.score].needs_generic
        raise PruningError(
            (f"the score {config.score!r}" if contrasts else f"the shrinkage {config.shrinkage!r}")
            + f" needs statistics of other people for {layer.name}, found none: observe others "
            "with this model and give their statistics as `generic`"
        )
    return generic[layer.name]


@dataclass(frozen=True)
class PrunedLayers:
    """What pruning made of layers, in the form in which it is applied and stored.

    masks: by layer name, True where kept, shape (groups, outputs, inputs). kept: what the kept
    weights become, by layer name, float16 in row-major order; a layer that keeps its weights is
    not among them. values: the other tensors that change (biases), by their names in the state
    dict, float32. All on the CPU. account: how it was found, plain values for a report.
    """

    masks: dict[str, Tensor]
    kept: dict[str, Tensor]
    values: dict[str, Tensor]
    account: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, layers: Sequence[PrunableLayer], network: nn.Module) -> Applied:
        """Puts it in force on the layers it was made for, in this network; see `apply_masks`."""
        return apply_masks(layers, self.masks, network=network, values=self.values, kept=self.kept)


@torch.no_grad()
def prune_layers(
    layers: Sequence[PrunableLayer],
    statistics: Mapping[str, InputStatistics],
    config: PruningConfig,
    generic: Mapping[str, InputStatistics] | None = None,
    cross: Mapping[str, Tensor] | None = None,
    dense_mean: Mapping[str, Tensor] | None = None,
) -> PrunedLayers:
    """From statistics to masks, weights and biases, layer by layer; nothing is changed here.

    statistics: of the user's data, by layer name, with the products of `products_for`. generic:
    the same of other people's data, where the score or the shrinkage of `config` needs them.
    cross, dense_mean: by layer name, where `statistics` are those of other inputs than the dense
    model's, see `update_layer`.
    Raises PruningError, naming the layer, when statistics are missing.
    """
    _check_overrides(layers, config)
    if config.shrinkage != "none":
        weight = None if isinstance(config.shrinkage, str) else config.shrinkage
        statistics = {
            layer.name: shrunk(statistics[layer.name], _generic_of(layer, generic, config), weight)
            for layer in layers
            if layer.name in statistics
        }
    # SparseGPT chooses masks itself; "global" tells it how much each layer loses.
    joint = config.update == "sparsegpt" and config.group != "global"
    scored = [
        layer
        for layer in layers
        if not (joint and is_updated(layer, statistics.get(layer.name), config))
    ]
    chosen = _masks(scored, statistics, config, generic)
    pruned = PrunedLayers({}, {}, {})
    for layer in layers:
        found = update_layer(
            layer,
            chosen.get(layer.name),
            statistics.get(layer.name),
            config,
            (cross or {}).get(layer.name),
            (dense_mean or {}).get(layer.name),
        )
        pruned.masks[layer.name] = found.mask
        if found.kept is not None:
            pruned.kept[layer.name] = found.kept
        if found.bias is not None:
            pruned.values[f"{layer.name}.bias".lstrip(".")] = found.bias
    return pruned


@dataclass(frozen=True)
class Pruned:
    """What pruning a model came to, for the very model it was made from; see `PrunedLayers`."""

    model: nn.Module
    selection: Selection
    masks: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    values: Mapping[str, Tensor]

    def apply(self) -> Applied:
        """Puts it in force on the model it was made from; see `apply_masks`."""
        return apply_masks(
            self.selection.layers,
            self.masks,
            network=self.model,
            values=self.values,
            kept=self.kept,
        )


def prune(
    model: nn.Module,
    batches: Iterable[Any],
    config: PruningConfig | None = None,
    *,
    exclude: Mapping[str, str] | None = None,
    forward: Callable[[nn.Module, Any], object] | None = None,
) -> Pruned:
    """The whole way for any module: select, observe once, score, mask, update; nothing is changed.

    exclude: see `select_layers`. forward: see `observe`. In sequential order the batches run once
    a stage, so they must be a list or something else that can be iterated again and again.
    Raises PruningError.
    """
    config = config or PruningConfig()
    selection = select(model, config, exclude or {})
    if config.order == "sequential":
        from fpspeech.pruning.sequential import prune_batches  # it builds on this module

        pruned = prune_batches(model, selection.layers, batches, config, forward or _call)
        return Pruned(model, selection, pruned.masks, pruned.kept, pruned.values)
    products = products_for(selection.layers, config)
    statistics = observe(model, batches, selection.layers, forward, products, config.product_stride)
    pruned = prune_layers(selection.layers, statistics, config)
    return Pruned(model, selection, pruned.masks, pruned.kept, pruned.values)


def sparsity_of(masks: Mapping[str, Tensor]) -> float:
    """Share of the weights under these masks that is pruned."""
    kept = sum(int(mask.sum()) for mask in masks.values())
    return 1 - kept / sum(mask.numel() for mask in masks.values())
