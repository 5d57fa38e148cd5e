"""Mask and weights chosen together, column by column (Frantar, Alistarh, ICML 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from fpspeech.pruning.least_squares import damped_moments
from fpspeech.pruning.masks import layer_mask, n_of_m, n_of_m_mask, pruned_count
from fpspeech.pruning.statistics import InputStatistics

BLOCK = 128  # columns whose mask is chosen at once, and whose errors reach the rest together


def sparsegpt(
    weight: Tensor,
    statistics: InputStatistics,
    sparsity: float,
    group: str = "row",
    ridge: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """SparseGPT: prunes left to right, the columns to the right making up for what is lost.

    With UᵀU = (H + λI)⁻¹, U upper triangular, H = E[xxᵀ], λ = ridge · mean(diag H): a pruned weight
    w_j costs (w_j / U_jj)² once all columns to its right have moved by -(w_j / U_jj) U_j,:.
    weight: (groups, outputs, inputs). group: "row", "layer" or "N:M", as for `mask_for`, and as
    many weights are pruned. They are chosen anew before each block of columns among all columns
    that are left, so that a row (or the layer) loses exactly its share, but more of it in blocks
    where that costs less; the published code prunes the same share of every block.
    Inputs that were never driven are pruned first.
    Returns the mask, True where kept, and the weights, float32, zero where pruned.
    Raises PruningError when the statistics hold no Σxxᵀ.
    """
    hessian = damped_moments(statistics, ridge)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)  # U, (groups, inputs, inputs)
    scale = factor.diagonal(dim1=1, dim2=2).unsqueeze(1)  # U_jj, (groups, 1, inputs)
    silent = (statistics.square == 0).unsqueeze(1)
    weights = weight.double().clone()
    mask = torch.ones(weight.shape, dtype=torch.bool)
    inputs = weight.shape[-1]
    pattern = n_of_m(group)
    # An N:M pattern is chosen M columns at a time; blocks hold whole ones.
    chosen_at_once = BLOCK if pattern is None else pattern[1]
    block = BLOCK if pattern is None else max(1, BLOCK // pattern[1]) * pattern[1]

    def cost(start: int, stop: int) -> Tensor:
        columns = weights[..., start:stop]
        wanted = (columns / scale[..., start:stop]).square()
        return torch.where(silent[..., start:stop], -1 / (1 + columns.square()), wanted)

    def choose(start: int, stop: int) -> Tensor:
        if pattern is not None:
            return n_of_m_mask(cost(start, stop), *pattern)
        ahead = cost(start, inputs)
        gone = ~mask[..., :start]
        if group == "row":
            left = pruned_count(inputs, sparsity) - gone.sum(-1, keepdim=True)
            kept = _ranks(ahead) >= left
        else:
            left = pruned_count(weight.numel(), sparsity) - gone.sum()
            kept = layer_mask(ahead, int(left) / ahead.numel())
        return kept[..., : stop - start]

    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        errors = torch.zeros_like(weights[..., start:stop])
        for column in range(start, stop):
            if (column - start) % chosen_at_once == 0:
                end = min(column + chosen_at_once, stop)
                mask[..., column:end] = choose(column, end)
            error = (weights[..., column] / scale[..., column]).masked_fill(mask[..., column], 0)
            weights[..., column:stop] -= error.unsqueeze(2) * factor[
                :, column, column:stop
            ].unsqueeze(1)
            errors[..., column - start] = error
        weights[..., stop:] -= errors @ factor[:, start:stop, stop:]
    return mask, weights.masked_fill(~mask, 0).float()


def _ranks(score: Tensor) -> Tensor:
    """The place of each entry among those of its row, ties by index, 0 for the lowest."""
    order = score.argsort(dim=-1, stable=True)
    places = torch.arange(score.shape[-1]).expand(score.shape)
    return torch.empty_like(order).scatter_(-1, order, places)
