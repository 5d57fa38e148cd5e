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
    that were hardly seen keep their weights. Where fewer are pruned than kept, the same optimum is
    reached from the pruned set P with A = H + λI: w' = w - A⁻¹_:P (A⁻¹_PP)⁻¹ w_P.
    Returns float32 of the same shape, zero where pruned.
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
        kept = mask[group].sum(-1)
        mostly_kept = kept * 2 > mask.shape[-1]
        for rows in _batches(kept, ~mostly_kept):
            fitted[group, rows] = _solve(moments, damping, targets[rows], mask[group, rows]).float()
        if bool(mostly_kept.any()):
            inverse = _inverse(moments, damping)
            for rows in _batches(mask.shape[-1] - kept, mostly_kept):
                pruned = ~mask[group, rows]
                forces = _solve(inverse, 0.0, dense[rows], pruned)  # (A⁻¹_PP)⁻¹ w_P
                refitted = dense[rows] - forces @ inverse
                fitted[group, rows] = refitted.masked_fill(pruned, 0).float()
    return fitted


def _inverse(moments: Tensor, damping: float) -> Tensor:
    damped = moments.clone()
    damped.diagonal().add_(damping)
    return torch.cholesky_inverse(torch.linalg.cholesky(damped))


def _batches(sizes: Tensor, wanted: Tensor) -> Iterator[Tensor]:
    """Wanted rows that are solved together: similar sizes of their systems, bounded memory."""
    order = sizes.argsort(stable=True)
    order = order[wanted[order]]
    start = 0
    while start < order.numel():
        # The largest system of a batch is its last; grow while the batch stays in bounds.
        stop = start + 1
        while stop < order.numel() and (
            (stop + 1 - start) * int(sizes[order[stop]]) ** 2 <= BATCH_VALUES
        ):
            stop += 1
        yield order[start:stop]
        start = stop


def _solve(moments: Tensor, damping: float, targets: Tensor, mask: Tensor) -> Tensor:
    """Solves every row's system on its set of columns, zero elsewhere, float64.

    Shorter sets are padded with the identity.
    """
    rows = mask.shape[0]
    size = int(mask.sum(-1).max())
    result = torch.zeros(mask.shape, dtype=torch.float64)
    if size == 0:
        return result
    # Columns of the set first, in order; the padding behind them points anywhere and is cut off.
    columns = (~mask).to(torch.int8).argsort(dim=-1, stable=True)[:, :size]
    real = mask.gather(1, columns)
    systems = moments[columns.unsqueeze(2), columns.unsqueeze(1)]  # (rows, size, size)
    both = real.unsqueeze(2) & real.unsqueeze(1)
    systems.masked_fill_(~both, 0)
    systems.diagonal(dim1=1, dim2=2).add_(torch.where(real, damping, 1.0))
    right = targets.gather(1, columns).masked_fill(~real, 0).unsqueeze(2)
    factor = torch.linalg.cholesky(systems)
    solution = torch.cholesky_solve(right, factor).squeeze(2)
    assert solution.shape == (rows, size)
    return result.scatter(1, columns, solution.masked_fill(~real, 0))
