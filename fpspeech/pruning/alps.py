"""A mask improved by ADMM (Meng et al., NeurIPS 2024), then the exact fit under it."""

from __future__ import annotations

import torch
from torch import Tensor

from fpspeech.pruning.least_squares import damped_moments, masked_least_squares
from fpspeech.pruning.masks import mask_for
from fpspeech.pruning.statistics import InputStatistics

ROUNDS = 300  # at most
LOOK_EVERY = 3  # rounds between two looks at how much the mask moved
SETTLED_AFTER = 30  # rounds before a mask that nearly stands still is taken for settled
SMALLEST_RHO = 1e-5  # a mask that does not move under it has nowhere to go
SETTLED = 0.0003  # share of the kept weights that still moved


def alps(
    weight: Tensor,
    mask: Tensor,
    statistics: InputStatistics,
    sparsity: float,
    group: str = "row",
    ridge: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """ALPS: refines the mask of a score by ADMM, then fits the weights exactly under it.

    Splits min E‖Wx − W'x‖² + λ‖W − W'‖², W' under a mask that `group` and `sparsity` allow (see
    `mask_for`), into weights B that fit and weights D that are sparse; as published: inputs scaled
    to unit diagonal, ρ from 0.1 growing by 1.3, 1.2 or 1.1 every third round the less the mask
    moved, at most 300 rounds. The fit is `masked_least_squares` instead of conjugate gradients.
    weight, mask: (groups, outputs, inputs); the mask to start from, as `mask_for` made it. Of each
    row (under "layer": of the layer) the better of the first and the refined mask counts, so the
    result is never worse than least squares under the first.
    Returns the mask, True where kept, and the weights, float32, zero where pruned.
    Raises PruningError when the statistics hold no Σxxᵀ.
    """
    hessian = damped_moments(statistics, ridge)
    refined = _refine(weight, mask, hessian, sparsity, group)
    first = masked_least_squares(weight, mask, statistics, ridge)
    second = masked_least_squares(weight, refined, statistics, ridge)
    gain = _damage(weight - first, hessian) - _damage(weight - second, hessian)
    better = (gain.sum() if group == "layer" else gain) > 0
    return torch.where(better, refined, mask), torch.where(better, second, first)


def _damage(change: Tensor, hessian: Tensor) -> Tensor:
    """δᵀ(H + λI)δ of every row, shape (groups, outputs, 1)."""
    change = change.double()
    return ((change @ hessian) * change).sum(-1, keepdim=True)


def _refine(weight: Tensor, mask: Tensor, hessian: Tensor, sparsity: float, group: str) -> Tensor:
    scale = hessian.diagonal(dim1=1, dim2=2).sqrt()  # (groups, inputs)
    correlations = hessian / (scale.unsqueeze(2) * scale.unsqueeze(1))
    values, vectors = torch.linalg.eigh(correlations)
    values, vectors = values.float().unsqueeze(1), vectors.float()
    dense = (weight.double() * scale.unsqueeze(1)).float()
    targets = (dense.double() @ correlations).float()
    kept = int(mask.sum())
    start = dense.masked_fill(~mask, 0)
    sparse, dual, before = start, torch.zeros_like(dense), mask
    rho, moving = 0.1, False
    for number in range(1, ROUNDS + 1):
        # (C + ρI)⁻¹ through the eigenvectors of C: another ρ costs nothing.
        right = targets - dual + rho * sparse
        fitted = ((right @ vectors) / (values + rho)) @ vectors.transpose(1, 2)
        sparse = fitted + dual / rho
        now = mask_for(sparse.square(), group, sparsity)
        sparse = sparse.masked_fill(~now, 0)
        dual = dual + rho * (fitted - sparse)
        if number % LOOK_EVERY:
            continue
        moved = int((now != before).sum()) / max(1, kept)
        before = now
        if moved > 0.005:
            moving = True
            rho *= 1.3 if moved > 0.1 else 1.2
        elif not moving:  # ρ holds it where it started: begin anew with a smaller one
            rho /= 5
            if rho < SMALLEST_RHO:
                break
            sparse, dual, before = start, torch.zeros_like(dense), mask
        elif moved == 0 or (moved < SETTLED and number > SETTLED_AFTER):
            break
        else:
            rho *= 1.1
    return before
