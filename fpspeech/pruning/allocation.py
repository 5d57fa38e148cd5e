"""From a total sparsity to the sparsity of each layer: uniform, OWL, Erdős-Rényi-kernel.

The budget is a share of all weights of the layers together, and it is exact: the sparsities,
weighted by the layers' sizes, have the total as their mean. Masks then lose whole weights a row,
so that up to one weight a row is missing from it. See `sensitivity` for a measured allocation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fpspeech.pruning.layers import PrunableLayer, PruningError
from fpspeech.pruning.masks import pruned_count
from fpspeech.pruning.scores import wanda
from fpspeech.pruning.statistics import InputStatistics

CAP = 0.95  # highest sparsity of a single layer, as under the group "global"


@dataclass(frozen=True)
class LayerSparsity:
    """How much of one layer is pruned. size: its weights. pruned: those, in whole ones a row."""

    name: str
    sparsity: float
    size: int
    pruned: int


@dataclass(frozen=True)
class Allocation:
    """The sparsity of every layer; printed, it is a table."""

    layers: tuple[LayerSparsity, ...]

    @property
    def overrides(self) -> tuple[tuple[str, float], ...]:
        """(pattern, sparsity) pairs as `PruningConfig.overrides` takes them.

        Each pattern matches its one layer, whatever characters the name holds.
        """
        return tuple((_exactly(layer.name), layer.sparsity) for layer in self.layers)

    @property
    def reached(self) -> float:
        """Share of all weights that is pruned, when each row loses whole weights."""
        return sum(layer.pruned for layer in self.layers) / sum(layer.size for layer in self.layers)

    def __str__(self) -> str:
        width = max(len("layer"), *(len(layer.name) for layer in self.layers))
        lines = [f"{'layer':{width}}  {'weights':>13}  sparsity"]
        lines += [
            f"{layer.name:{width}}  {layer.size:>13,}  {layer.sparsity:>8.1%}"
            for layer in self.layers
        ]
        total = sum(layer.size for layer in self.layers)
        return "\n".join([*lines, f"{'total':{width}}  {total:>13,}  {self.reached:>8.1%}"])


def allocated(layers: Sequence[PrunableLayer], sparsity_of: Callable[[str], float]) -> Allocation:
    """The allocation that gives each layer the sparsity of its name."""
    rows: list[LayerSparsity] = []
    for layer in layers:
        groups, outputs, inputs = layer.shape
        sparsity = sparsity_of(layer.name)
        pruned = groups * outputs * pruned_count(inputs, sparsity)
        rows.append(LayerSparsity(layer.name, sparsity, layer.size, pruned))
    return Allocation(tuple(rows))


def uniform(layers: Sequence[PrunableLayer], sparsity: float) -> Allocation:
    """Every layer loses the same share."""
    _check(layers, sparsity, cap=sparsity)
    return allocated(layers, lambda name: sparsity)


def owl(
    layers: Sequence[PrunableLayer],
    statistics: Mapping[str, InputStatistics],
    sparsity: float,
    *,
    multiple: float = 5.0,
    spread: float = 0.08,
    cap: float = CAP,
    blocks: Mapping[str, str] | None = None,
) -> Allocation:
    """Blocks that hold more outliers among their scores lose less (OWL: Yin et al., ICML 2024).

    With D_b the share of the scores |w|·sqrt(E[x²]) of block b above `multiple` times their mean
    over the block, and r_b = 2·spread·(D_b - min D)/(max D - min D), the sparsity of block b is
    c - r_b, clipped to 0 ... cap. The published c makes the plain mean over blocks the total,
    which is off where blocks differ in size: here c makes the mean over weights the total.

    blocks: layer name -> name of its block; a layer that is not there is a block of its own.
    Raises PruningError where a layer has no statistics, `blocks` names no layer, or the cap is
    below the sparsity.
    """
    _check(layers, sparsity, cap)
    if multiple <= 0 or spread < 0:
        raise PruningError(
            f"OWL: expected a multiple above 0 and a spread of 0 or more, found {multiple:g} "
            f"and {spread:g}"
        )
    blocks = blocks or {}
    if unknown := blocks.keys() - {layer.name for layer in layers}:
        raise PruningError(
            f"OWL: blocks name {sorted(unknown)[0]!r}, which is no pruned layer: expected names "
            f"such as {layers[0].name!r}"
        )
    members: dict[str, list[PrunableLayer]] = {}
    for layer in layers:
        members.setdefault(blocks.get(layer.name, layer.name), []).append(layer)
    outliers = {
        block: _outlier_share([_wanda(layer, statistics) for layer in inside], multiple)
        for block, inside in members.items()
    }
    least, most = min(outliers.values()), max(outliers.values())
    scale = 2 * spread / (most - least) if most > least else 0.0
    wanted = {
        layer.name: -scale * (outliers[block] - least)
        for block, inside in members.items()
        for layer in inside
    }

    return shifted(layers, wanted, sparsity, cap=cap)


def shifted(
    layers: Sequence[PrunableLayer],
    wanted: Mapping[str, float],
    sparsity: float,
    *,
    cap: float = CAP,
) -> Allocation:
    """Every layer at what is wanted for its name plus one common number, clipped to 0 ... cap.

    The number is the one with which the mean over weights is the total.
    Raises PruningError where the cap is below the sparsity.
    """
    _check(layers, sparsity, cap)

    def sparsities(shift: float) -> dict[str, float]:
        return {layer.name: min(max(wanted[layer.name] + shift, 0.0), cap) for layer in layers}

    low, high = -max(wanted.values()), cap - min(wanted.values())  # all at 0, all at the cap
    return allocated(layers, _meeting(layers, sparsity, sparsities, low, high).__getitem__)


def erk(layers: Sequence[PrunableLayer], sparsity: float, *, cap: float = CAP) -> Allocation:
    """Small and thin layers lose less: Erdős-Rényi-kernel (Evci et al., RigL, ICML 2020).

    The density of a layer is proportional to (n_in + n_out + k_w + k_h)/(n_in·n_out·k_w·k_h),
    without kernel for a Linear, with n_in of one group for a grouped convolution; clipped to
    1 - cap ... 1, the others scaled so that the mean over weights is the total.
    Raises PruningError where the cap is below the sparsity.
    """
    _check(layers, sparsity, cap)
    raw = {layer.name: sum(_weight_shape(layer)) / layer.size for layer in layers}

    def sparsities(sparser: float) -> dict[str, float]:
        # The factor's inverse, so that more is pruned as it grows.
        return {
            name: min(max(1 - value / sparser, 0.0), cap) if sparser else 0.0
            for name, value in raw.items()
        }

    found = _meeting(layers, sparsity, sparsities, 0.0, max(raw.values()) / (1 - cap))
    return allocated(layers, found.__getitem__)


def _meeting(
    layers: Sequence[PrunableLayer],
    sparsity: float,
    sparsities: Callable[[float], dict[str, float]],
    low: float,
    high: float,
) -> dict[str, float]:
    """The sparsities at the value between `low` and `high` where they meet the total.

    sparsities: grow with the value, from less than the total at `low` to more at `high`.
    """
    total = sparsity * sum(layer.size for layer in layers)

    def pruned(value: float) -> float:
        found = sparsities(value)  # an exact sum, so that the order of the layers is nothing to it
        return math.fsum(layer.size * found[layer.name] for layer in layers)

    while low < (middle := (low + high) / 2) < high:
        if pruned(middle) < total:
            low = middle
        else:
            high = middle
    return sparsities(high)


def _wanda(layer: PrunableLayer, statistics: Mapping[str, InputStatistics]) -> Tensor:
    if layer.name not in statistics:
        raise PruningError(
            f"{layer.name} saw no input while the data streamed by, so OWL cannot count its "
            "outliers: exclude it, or allocate without statistics ('erk', 'uniform')"
        )
    return wanda(layer.weight().to("cpu").float(), statistics[layer.name], 0)


def _outlier_share(scores: Iterable[Tensor], multiple: float) -> float:
    scores = list(scores)
    size = sum(score.numel() for score in scores)
    threshold = multiple * math.fsum(float(score.double().sum()) for score in scores) / size
    return sum(int((score > threshold).sum()) for score in scores) / size


def _weight_shape(layer: PrunableLayer) -> tuple[int, ...]:
    module = layer.module
    groups, outputs, inputs = layer.shape
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return groups * outputs, module.in_channels // groups, *module.kernel_size
    return outputs, inputs


def _exactly(name: str) -> str:
    """An `fnmatch` pattern that matches this name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _check(layers: Sequence[PrunableLayer], sparsity: float, cap: float) -> None:
    if not layers:
        raise PruningError("nothing to allocate a sparsity to: expected one layer or more")
    if not 0 <= sparsity < 1:
        raise PruningError(f"expected a total sparsity of 0 <= sparsity < 1, found {sparsity:g}")
    if not sparsity <= cap < 1:
        raise PruningError(
            f"the cap on a layer's sparsity is {cap:g}: expected it below 1 and not below the "
            f"total sparsity, {sparsity:g}"
        )
