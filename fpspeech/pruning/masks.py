"""Score and sparsity -> mask, exact by index: ties never prune more or less than was asked.

A mask is boolean, True where the weight is kept, in the shape of the score
(groups, outputs, inputs). Among equal scores the first ones in row-major order are pruned,
so the same scores always give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fpspeech.pruning.layers import PruningError


def mask_for(score: Tensor, group: str, sparsity: float) -> Tensor:
    """The mask of one layer: `row_mask`, `layer_mask`, or `n_of_m_mask` for a group "N:M"."""
    pattern = n_of_m(group)
    if pattern is not None:
        return n_of_m_mask(score, *pattern)
    return row_mask(score, sparsity) if group == "row" else layer_mask(score, sparsity)


def n_of_m(group: str) -> tuple[int, int] | None:
    """(N, M) when the name of a comparison group is an N:M pattern such as "2:4"."""
    keep, colon, of = group.partition(":")
    if colon and keep.isdigit() and of.isdigit():
        return int(keep), int(of)
    return None


def row_mask(score: Tensor, sparsity: float) -> Tensor:
    """Prunes the floor(inputs · sparsity) lowest scores of every output row."""
    return ~_lowest(score, pruned_count(score.shape[-1], sparsity))


def layer_mask(score: Tensor, sparsity: float) -> Tensor:
    """Prunes the floor(size · sparsity) lowest scores of the layer, wherever they are."""
    lowest = _lowest(score.reshape(1, -1), pruned_count(score.numel(), sparsity))
    return ~lowest.reshape(score.shape)


def global_masks(
    scores: Mapping[str, Tensor], sparsity: float, cap: float = 0.95
) -> dict[str, Tensor]:
    """Prunes the floor(total · sparsity) lowest scores of all layers together.

    Each layer's scores are divided by their mean first, since raw scores of different layers do
    not compare. No layer loses more than floor(size · cap) of its weights: the rest are no
    candidates. Raises PruningError when the cap leaves too few candidates.
    """
    if cap < sparsity:
        raise PruningError(
            f"the cap on a layer's sparsity is {cap:g}, below the sparsity of {sparsity:g} that "
            "all layers together must reach: raise the cap"
        )
    candidates: list[Tensor] = []
    for score in scores.values():
        flat = score.reshape(-1)
        relative = flat / flat.mean().clamp_min(torch.finfo(flat.dtype).tiny)
        protected = ~_lowest(flat.reshape(1, -1), pruned_count(flat.numel(), cap)).reshape(-1)
        candidates.append(relative.masked_fill(protected, math.inf))
    everything = torch.cat(candidates).reshape(1, -1)
    available = int(torch.isfinite(everything).sum())
    wanted = pruned_count(everything.numel(), sparsity)
    if wanted > available:
        raise PruningError(
            f"{wanted} weights should be pruned, but the cap of {cap:g} a layer leaves only "
            f"{available} candidates: raise the cap or lower the sparsity"
        )
    kept = ~_lowest(everything, wanted).reshape(-1)
    parts = torch.split(kept, [candidate.numel() for candidate in candidates])
    return {
        name: part.reshape(score.shape)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def n_of_m_mask(score: Tensor, keep: int, of: int) -> Tensor:
    """Keeps the `keep` highest of every `of` consecutive inputs of a row ("2:4" keeps two).

    Raises PruningError when a row's inputs do not divide into groups of `of`.
    """
    if not 0 < keep <= of:
        raise PruningError(f"expected 0 < N <= M in N:M, found {keep}:{of}")
    if score.shape[-1] % of:
        raise PruningError(
            f"rows of {score.shape[-1]} inputs do not divide into groups of {of} for "
            f"{keep}:{of} pruning: exclude this layer"
        )
    grouped = score.reshape(*score.shape[:-1], -1, of)
    return ~_lowest(grouped, of - keep).reshape(score.shape)


def pruned_count(size: int, sparsity: float) -> int:
    """floor(size · sparsity), safe from 100 · 0.29 = 28.999999999999996."""
    return math.floor(size * sparsity + 1e-6)


def _lowest(score: Tensor, count: int) -> Tensor:
    """True at the `count` lowest entries along the last dimension, ties by index."""
    if bool(torch.isnan(score).any()):
        raise PruningError("the score holds NaN: check the weights and the statistics")
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = score.kthvalue(count, dim=-1, keepdim=True).values
    below = score < threshold
    tied = score == threshold
    missing = count - below.sum(-1, keepdim=True)
    return below | (tied & (tied.cumsum(-1, dtype=torch.int32) <= missing))


def pack(mask: Tensor) -> Tensor:
    """Packs a mask into bytes, row-major, lowest bit first: uint8, shape (ceil(size / 8),)."""
    bits = mask.reshape(-1).to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).reshape(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(
        -1, dtype=torch.uint8
    )


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undoes `pack` for a mask of the given shape; raises PruningError when sizes disagree."""
    size = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != (size + 7) // 8:
        raise PruningError(
            f"a packed mask of shape {shape} takes {(size + 7) // 8} bytes of uint8, "
            f"found {packed.numel()} of {packed.dtype}"
        )
    bits = packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (bits & 1).reshape(-1)[:size].bool().reshape(shape)
