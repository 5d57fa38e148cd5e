"""The one loop: stream data through a model, score its weights, make the masks, apply them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from fpspeech.pruning.applied import Applied, apply_masks
from fpspeech.pruning.layers import Exclusion, PrunableLayer, PruningError, Selection, select_layers
from fpspeech.pruning.least_squares import can_fit, masked_least_squares
from fpspeech.pruning.masks import global_masks, layer_mask, n_of_m_mask, row_mask
from fpspeech.pruning.scores import SCORES
from fpspeech.pruning.statistics import InputStatistics, Observer

GROUPS = ("row", "layer", "global")
UPDATES = ("none", "least_squares")


@dataclass(frozen=True)
class PruningConfig:
    """What to prune and how much; every default of the pruning core stands here.

    sparsity: share of the selected weights set to zero, 0 <= sparsity < 1.
    score: a name of `SCORES`. group: which weights compete, "row", "layer", "global" or "N:M"
    (keep N of every M inputs; the sparsity is then 1 - N/M and `sparsity` must say so).
    cap: highest sparsity of a single layer under "global". seed: of the random score.
    overrides: (pattern of layer names, sparsity) pairs, the last that matches counts; for "row"
    and "layer" only, since "global" and "N:M" leave no choice a layer.
    update: what the kept weights become, "none" (they stay) or "least_squares" (see
    `masked_least_squares`), with its ridge. product_stride: Σxxᵀ is counted at every n-th
    position, since neighbouring frames are alike and it costs more than running the layer.
    Raises PruningError on values out of range.
    """

    sparsity: float = 0.7
    score: str = "obs"
    group: str = "row"
    cap: float = 0.95
    seed: int = 0
    overrides: tuple[tuple[str, float], ...] = ()
    update: str = "least_squares"
    ridge: float = 0.01
    product_stride: int = 4

    def __post_init__(self) -> None:
        for sparsity in (self.sparsity, *(sparsity for _, sparsity in self.overrides)):
            if not 0 <= sparsity < 1:
                raise PruningError(
                    f"sparsity is the share of weights that is pruned: expected "
                    f"0 <= sparsity < 1, found {sparsity:g}"
                    + (f"; did you mean {sparsity / 100:g}?" if 1 < sparsity < 100 else "")
                )
        if self.overrides and self.group not in ("row", "layer"):
            raise PruningError(
                f"a sparsity for single layers was given, but the group {self.group!r} decides "
                "itself what each layer loses: use the group 'row' or 'layer'"
            )
        if self.score not in SCORES:
            raise PruningError(f"no score is named {self.score!r}: expected one of {list(SCORES)}")
        if self.group not in GROUPS and self.n_of_m is None:
            raise PruningError(
                f"no comparison group is named {self.group!r}: expected one of {list(GROUPS)} "
                "or N:M such as '2:4'"
            )
        if self.n_of_m is not None:
            keep, of = self.n_of_m
            if not 0 < keep <= of:
                raise PruningError(f"expected 0 < N <= M in N:M, found {self.group}")
            if abs(self.sparsity - (1 - keep / of)) > 1e-6:
                raise PruningError(
                    f"{self.group} keeps {keep} of every {of} weights, a sparsity of "
                    f"{1 - keep / of:g}; found sparsity {self.sparsity:g}: make them agree"
                )
        if not 0 < self.cap <= 1:
            raise PruningError(f"expected 0 < cap <= 1, found {self.cap:g}")
        if self.update not in UPDATES:
            raise PruningError(
                f"no update is named {self.update!r}: expected one of {list(UPDATES)}"
            )
        if self.product_stride < 1:
            raise PruningError(
                f"expected a product stride of 1 or more, found {self.product_stride}"
            )
        if not self.ridge > 0:
            raise PruningError(f"expected a ridge above 0, found {self.ridge:g}")

    def sparsity_for(self, name: str) -> float:
        """The sparsity of the layer of this name."""
        matching = [value for pattern, value in self.overrides if fnmatchcase(name, pattern)]
        return matching[-1] if matching else self.sparsity

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(N, M) when the group is an N:M pattern."""
        keep, colon, of = self.group.partition(":")
        if colon and keep.isdigit() and of.isdigit():
            return int(keep), int(of)
        return None


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
) -> dict[str, Tensor]:
    """Scores every weight and prunes the least; no weight is changed.

    Returns masks by layer name, True where kept, shape (groups, outputs, inputs), on the CPU.
    Raises PruningError, naming the layer, when a score needs statistics that are not there.
    """
    for pattern, _ in config.overrides:
        if not any(fnmatchcase(layer.name, pattern) for layer in layers):
            raise PruningError(
                f"no pruned layer is named {pattern!r}, for which a sparsity was given: layers "
                f"are named such as {layers[0].name!r}"
            )
    if config.group == "global":
        return global_masks(
            {layer.name: _score(layer, statistics, config) for layer in layers},
            config.sparsity,
            config.cap,
        )
    masks: dict[str, Tensor] = {}
    for layer in layers:
        score = _score(layer, statistics, config)
        if config.n_of_m is not None:
            masks[layer.name] = n_of_m_mask(score, *config.n_of_m)
        elif config.group == "row":
            masks[layer.name] = row_mask(score, config.sparsity_for(layer.name))
        else:
            masks[layer.name] = layer_mask(score, config.sparsity_for(layer.name))
    return masks


def products_for(layers: Sequence[PrunableLayer], config: PruningConfig) -> frozenset[str]:
    """Names of the layers whose Σxxᵀ the score or the update of `config` needs."""
    if config.update == "none" and not SCORES[config.score].needs_products:
        return frozenset()
    return frozenset(layer.name for layer in layers if can_fit(layer))


@torch.no_grad()
def update_weights(
    layers: Sequence[PrunableLayer],
    masks: Mapping[str, Tensor],
    statistics: Mapping[str, InputStatistics],
    config: PruningConfig,
) -> dict[str, Tensor]:
    """What the kept weights become, in closed form; no weight is changed here.

    Returns the kept weights in row-major order, float16 as they are stored, by layer name;
    layers whose Σxxᵀ is too large to count keep their weights. Nothing where the update is
    "none". Raises PruningError where products are missing or a value does not fit float16.
    """
    kept: dict[str, Tensor] = {}
    for layer in layers if config.update != "none" else ():
        found = statistics.get(layer.name)
        if found is None or found.products is None:
            if can_fit(layer):
                raise PruningError(
                    f"the statistics of {layer.name} hold no products, which the update "
                    f"{config.update!r} needs: observe with products_for(layers, config)"
                )
            continue
        mask = masks[layer.name]
        weight = layer.weight().to("cpu", torch.float32)
        fitted = masked_least_squares(weight, mask, found, config.ridge)[mask].half()
        if not bool(torch.isfinite(fitted).all()):
            raise PruningError(
                f"the updated weights of {layer.name} do not fit float16: raise the ridge "
                f"(now {config.ridge:g})"
            )
        kept[layer.name] = fitted
    return kept


def _score(
    layer: PrunableLayer, statistics: Mapping[str, InputStatistics], config: PruningConfig
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
    values = score.function(weight, found, seed).float()
    if not bool(torch.isfinite(values).all()):
        raise PruningError(f"the score of {layer.name} is not finite: check its weights")
    return values


@dataclass(frozen=True)
class Pruned:
    """What pruning a model came to: masks, and what the kept weights become, by layer name."""

    selection: Selection
    masks: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]

    def apply(self) -> Applied:
        """Puts it in force on the model it was made from; see `apply_masks`."""
        return apply_masks(self.selection.layers, self.masks, kept=self.kept)


def prune(
    model: nn.Module,
    batches: Iterable[Any],
    config: PruningConfig | None = None,
    *,
    exclude: Mapping[str, str] | None = None,
    forward: Callable[[nn.Module, Any], object] | None = None,
) -> Pruned:
    """The whole way for any module: select, observe once, score, mask, update; nothing is changed.

    exclude: see `select_layers`. forward: see `observe`. Raises PruningError.
    """
    config = config or PruningConfig()
    selection = select(model, config, exclude or {})
    products = products_for(selection.layers, config)
    statistics = observe(model, batches, selection.layers, forward, products, config.product_stride)
    masks = make_masks(selection.layers, statistics, config)
    kept = update_weights(selection.layers, masks, statistics, config)
    return Pruned(selection, masks, kept)


def sparsity_of(masks: Mapping[str, Tensor]) -> float:
    """Share of the weights under these masks that is pruned."""
    kept = sum(int(mask.sum()) for mask in masks.values())
    return 1 - kept / sum(mask.numel() for mask in masks.values())
