"""After the mask: the kept weights that best reproduce what the dense layer gave."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fpspeech.pruning.layers import PrunableLayer, PruningError
from fpspeech.pruning.statistics import InputStatistics

PRODUCT_VALUES = 1 << 24  # largest Σxxᵀ that is collected for a layer, in numbers: 64 MiB
BATCH_VALUES = 1 << 24  # numbers in the systems that are solved together: 128 MiB in float64


def can_fit(layer: PrunableLayer) -> bool:
    """Whether the layer's Σxxᵀ is small enough to collect; that of a wide grouped one is not."""
    groups, _, inputs = layer.shape
    return groups * inputs * inputs <= PRODUCT_VALUES


def masked_least_squares(
    weight: Tensor, mask: Tensor, statistics: InputStatistics, ridge: float = 0.01
) -> Tensor:
    """The weights under the mask that minimise E‖Wx − W'x‖² + λ‖W − W'‖² over the inputs seen.

    weight, mask: (groups, outputs, inputs), mask True where kept. Per row with kept set S and
    H = E[xxᵀ]: (H_SS + λI) w'_S = H_S: w + λ w_S, with λ = ridge · mean(diag H), so that inputs
    that were hardly seen keep their weights. Returns float32 of the same shape, zero where pruned.
    Raises PruningError when the statistics hold no Σxxᵀ.
    """
    if statistics.moments is None:
        raise PruningError("masked least squares needs statistics with products (Σxxᵀ)")
    fitted = torch.zeros_like(weight, dtype=torch.float32)
    for group in range(weight.shape[0]):
        moments = statistics.moments[group].double()
        damping = ridge * float(moments.diagonal().mean())
        if damping == 0:  # the group never saw anything but zeros
            fitted[group] = weight[group].masked_fill(~mask[group], 0)
            continue
        dense = weight[group].double()
        targets = dense @ moments + damping * dense  # rows: H w + λ w, of which S is needed
        for rows in _batches(mask[group]):
            fitted[group, rows] = _solve(moments, damping, targets[rows], mask[group, rows])
    return fitted


def _batches(mask: Tensor) -> Iterator[Tensor]:
    """Rows that are solved together: similar numbers of kept weights, bounded memory."""
    kept = mask.sum(-1)
    order = kept.argsort(stable=True)
    start = 0
    while start < order.numel():
        # The largest system of a batch is its last; grow while the batch stays in bounds.
        stop = start + 1
        while stop < order.numel() and (
            (stop + 1 - start) * int(kept[order[stop]]) ** 2 <= BATCH_VALUES
        ):
            stop += 1
        yield order[start:stop]
        start = stop


def _solve(moments: Tensor, damping: float, targets: Tensor, mask: Tensor) -> Tensor:
    """Solves every row's system on its kept set; shorter sets are padded with the identity."""
    rows = mask.shape[0]
    size = int(mask.sum(-1).max())
    result = torch.zeros(mask.shape, dtype=torch.float32)
    if size == 0:
        return result
    # Kept columns first, in order; the padding behind them points anywhere and is cut off.
    columns = (~mask).to(torch.int8).argsort(dim=-1, stable=True)[:, :size]
    real = mask.gather(1, columns)
    systems = moments[columns.unsqueeze(2), columns.unsqueeze(1)]  # (rows, size, size)
    both = real.unsqueeze(2) & real.unsqueeze(1)
    systems.masked_fill_(~both, 0)
    systems.diagonal(dim1=1, dim2=2).add_(torch.where(real, damping, 1.0))
    right = targets.gather(1, columns).masked_fill(~real, 0).unsqueeze(2)
    factor = torch.linalg.cholesky(systems)
    solution = torch.cholesky_solve(right, factor).squeeze(2).float()
    assert solution.shape == (rows, size)
    return result.scatter(1, columns, solution.masked_fill(~real, 0))
