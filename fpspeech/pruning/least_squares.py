"""After the mask: the kept weights, and the bias, that best reproduce what the dense layer gave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fpspeech.pruning.conjugate_gradients import solve_on_sets
from fpspeech.pruning.layers import PrunableLayer, PruningError
from fpspeech.pruning.statistics import InputStatistics

PRODUCT_VALUES = 1 << 24  # largest Σxxᵀ that is collected for a layer, in numbers: 64 MiB
BATCH_VALUES = 1 << 24  # numbers in the systems that are solved together: 128 MiB in float64

DIRECT_SHARE = 0.35
"""Share of a layer's inputs beyond which a row's system is solved by conjugate gradients: about
where both take the same time on a CPU. Factors cost the cube of a set, rounds the square of all."""

SMALL = 128
"""Systems of no more are always solved by factors."""


def can_fit(layer: PrunableLayer) -> bool:
    """Whether the layer's Σxxᵀ is small enough to collect; that of a wide grouped one is not."""
    groups, _, inputs = layer.shape
    return groups * inputs * inputs <= PRODUCT_VALUES


def centred(statistics: InputStatistics) -> InputStatistics:
    """The same statistics with the covariance of x in the place of E[xxᵀ] (products, `moments`).

    For layers whose bias is free to take the difference of the means: then the weights that solve
    `masked_least_squares` for the covariance, with b' = b + (W − W')E[x], are the optimum of
    E‖Wx + b − W'x − b'‖² + λ‖W − W'‖² over weights and bias together.
    Raises PruningError when the statistics hold no Σxxᵀ.
    """
    moments = _moments(statistics).double()
    mean = statistics.product_mean.double()
    covariance = moments - mean.unsqueeze(2) * mean.unsqueeze(1)
    return replace(statistics, products=covariance * statistics.product_count)


def compensated_bias(
    bias: Tensor,
    before: Tensor,
    after: Tensor,
    statistics: InputStatistics,
    dense_mean: Tensor | None = None,
) -> Tensor:
    """b + (W − W')E[x]: the bias that keeps the mean of every output when W becomes W'.

    bias: (groups · outputs,). before, after: W and W', (groups, outputs, inputs). dense_mean: E[x],
    (groups, inputs), over the positions of the products, where `statistics` are those of other
    inputs x̃: then b + W·E[x] − W'·E[x̃]. Returns float32 of the shape of `bias`.
    """
    own = statistics.mean if dense_mean is None else statistics.product_mean
    dense = own if dense_mean is None else dense_mean
    lost = before.double() @ dense.double().unsqueeze(2)  # (groups, outputs, 1)
    lost = lost - after.double() @ own.double().unsqueeze(2)
    return (bias.double() + lost.reshape(bias.shape)).float()


def masked_least_squares(
    weight: Tensor,
    mask: Tensor,
    statistics: InputStatistics,
    ridge: float = 0.01,
    cross: Tensor | None = None,
) -> Tensor:
    """The weights under the mask that minimise E‖Wx − W'x‖² + λ‖W − W'‖² over the inputs seen.

    weight, mask: (groups, outputs, inputs), mask True where kept. Per row with kept set S and
    H = E[xxᵀ]: (H_SS + λI) w'_S = H_S: w + λ w_S, with λ = ridge · mean(diag H), so that inputs
    that were hardly seen keep their weights. Where fewer are pruned than kept, the same optimum is
    reached from the pruned set P with A = H + λI: w' = w - A⁻¹_:P (A⁻¹_PP)⁻¹ w_P. Where both sets
    are large, by conjugate gradients, see `solve_on_sets`.
    cross: E[x x̃ᵀ], shape (groups, inputs, inputs), where the layer will see x̃ instead of the x of
    the dense model, and `statistics` are those of x̃: minimises E‖Wx − W'x̃‖² + λ‖W − W'‖² instead.
    Returns float32 of the same shape, zero where pruned.
    Raises PruningError when the statistics hold no Σxxᵀ.
    """
    all_moments = _moments(statistics)
    fitted = torch.zeros_like(weight, dtype=torch.float32)
    for group in range(weight.shape[0]):
        moments = all_moments[group].double()
        damping = ridge * float(moments.diagonal().mean())
        if damping == 0:  # the group never saw anything but zeros
            fitted[group] = weight[group].masked_fill(~mask[group], 0)
            continue
        dense = weight[group].double()
        towards = moments if cross is None else cross[group].double()
        targets = dense @ towards + damping * dense  # rows: H w + λ w, of which S is needed
        kept = mask[group].sum(-1)
        few = max(SMALL, DIRECT_SHARE * mask.shape[-1])
        pruned_count = mask.shape[-1] - kept
        mostly_kept = (pruned_count <= few) & (pruned_count < kept)
        mostly_pruned = (kept <= few) & ~mostly_kept
        between = ~(mostly_kept | mostly_pruned)
        for rows in _batches(kept, mostly_pruned):
            fitted[group, rows] = _solve(moments, damping, targets[rows], mask[group, rows]).float()
        if bool((~mostly_pruned).any()):
            damped, inverse = _damped_inverse(moments, damping)
            fitted[group, between] = solve_on_sets(
                damped, inverse, targets[between], dense[between], mask[group, between]
            )
            # The optimum under no mask, from which the pruned set takes away.
            free = dense if cross is None else targets @ inverse
            for rows in _batches(pruned_count, mostly_kept):
                pruned = ~mask[group, rows]
                forces = _solve(inverse, 0.0, free[rows], pruned)  # (A⁻¹_PP)⁻¹ w_P
                refitted = free[rows] - forces @ inverse
                fitted[group, rows] = refitted.masked_fill(pruned, 0).float()
    return fitted


def unmasked_least_squares(
    weight: Tensor, statistics: InputStatistics, ridge: float, cross: Tensor
) -> Tensor:
    """The optimum of `masked_least_squares` with a cross moment where every weight is kept.

    F = (W·E[x x̃ᵀ] + λW)(H + λI)⁻¹. Under a mask the objective differs by a constant from
    (F − W')(H + λI)(F − W')ᵀ, so that what reproduces F in place of W is what reproduces Wx.
    Returns float32 of the shape of the weight.
    """
    damping = _damping(_moments(statistics), ridge)[:, None, None]
    targets = weight.double() @ cross.double() + damping * weight.double()
    factor = torch.linalg.cholesky(damped_moments(statistics, ridge))
    return torch.cholesky_solve(targets.transpose(1, 2), factor).transpose(1, 2).float()


def damped_moments(statistics: InputStatistics, ridge: float) -> Tensor:
    """H + λI, λ = ridge · mean(diag H) of the group, H = E[xxᵀ]: float64, (groups, inputs, inputs).

    λ is one for a group that never saw anything but zeros. Raises PruningError without Σxxᵀ.
    """
    moments = _moments(statistics).double()  # a matrix of our own: `moments` divides anew
    moments.diagonal(dim1=1, dim2=2).add_(_damping(moments, ridge).unsqueeze(1))
    return moments


def _damping(moments: Tensor, ridge: float) -> Tensor:
    damping = ridge * moments.double().diagonal(dim1=1, dim2=2).mean(-1)
    return damping.masked_fill(damping == 0, 1)


def _moments(statistics: InputStatistics) -> Tensor:
    if statistics.moments is None:
        raise PruningError("masked least squares needs statistics with products (Σxxᵀ)")
    return statistics.moments


def _damped_inverse(moments: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    damped = moments.clone()
    damped.diagonal().add_(damping)
    return damped, torch.cholesky_inverse(torch.linalg.cholesky(damped))


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
