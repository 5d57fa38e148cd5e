"""Many small systems that share one matrix, each on a set of its own, by conjugate gradients.

A row's system is A_SS w = t with S the columns that it keeps. Factors of A_SS serve one row only;
products with A serve all of them, as one large matrix product a round. The preconditioner is
(A⁻¹)_SS: A⁻¹ is known once, and what it makes of A_SS is the identity but for a part of at most as
many dimensions as were pruned, so a few dozen rounds are enough where the inputs are as correlated
as activations are.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 3e-4
"""Norm of what is left of a row, over that at the start, at which its solution counts. On the
layers of a Whisper the objective is then within about 1e-4 of its optimum; weights are stored in
float16, with 11 bits."""

MOST_ROUNDS = 400
"""A system that takes more is solved as far as it got: more rounds only round."""

ROWS_VALUES = 1 << 22  # numbers of the rows that are solved together


def solve_on_sets(
    matrix: Tensor, inverse: Tensor, targets: Tensor, start: Tensor, sets: Tensor
) -> Tensor:
    """The w of every row that is zero outside its set S and solves matrix_SS w_S = targets_S.

    matrix, inverse: symmetric positive definite and its inverse, (n, n). targets, start: where to
    come to and where to begin, (rows, n). sets: True where in S, (rows, n). Preconditioned
    conjugate gradients (Hestenes, Stiefel 1952; Meng et al. 2024 for rows together) in float32.
    Returns float32, (rows, n).
    """
    matrix, inverse = matrix.float(), inverse.float()
    solution = torch.zeros(sets.shape)
    step = max(1, ROWS_VALUES // max(1, matrix.shape[0]))
    for first in range(0, len(sets), step):
        rows = slice(first, first + step)
        solution[rows] = _solve(
            matrix, inverse, targets[rows].float(), start[rows].float(), sets[rows]
        )
    return solution


def _solve(matrix: Tensor, inverse: Tensor, targets: Tensor, start: Tensor, sets: Tensor) -> Tensor:
    outside = ~sets
    solution = start.masked_fill(outside, 0)
    left = (targets - solution @ matrix).masked_fill(outside, 0)
    enough = TOLERANCE * left.norm(dim=1)
    changed = (left @ inverse).masked_fill(outside, 0)
    direction = changed
    product = (left * changed).sum(1, keepdim=True)
    tiny = torch.finfo(torch.float32).tiny
    for _ in range(MOST_ROUNDS):
        if bool((left.norm(dim=1) <= enough).all()):
            break
        moved = (direction @ matrix).masked_fill(outside, 0)
        length = product / (direction * moved).sum(1, keepdim=True).clamp_min(tiny)
        solution = solution + length * direction
        left = left - length * moved
        changed = (left @ inverse).masked_fill(outside, 0)
        before, product = product, (left * changed).sum(1, keepdim=True)
        direction = changed + (product / before.clamp_min(tiny)) * direction
    return solution
