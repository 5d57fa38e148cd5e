"""How much each weight contributes: (weight, statistics, seed) -> a score of the weight's shape.

The lowest scores are pruned. Adding a score is one function and one row of `SCORES`.
weight: (groups, outputs, inputs). statistics: of the layer's input, (groups, inputs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fpspeech.pruning.statistics import InputStatistics

CONTRAST_POWER = 1.0  # how much being the user's own counts in `contrast`, beside being large
CONTRAST_RANGE = 10.0  # no input counts more than ten times more, or less, for being the user's own


def magnitude(weight: Tensor, statistics: InputStatistics | None, seed: int) -> Tensor:
    """|w|: what the weight could contribute, whatever it is fed."""
    return weight.abs()


def fine_pruning(weight: Tensor, statistics: InputStatistics, seed: int) -> Tensor:
    """|w|·E|x|: the mean size of what the weight adds to its output.

    Our reading of the published description (Bingham, Zonouz, Aran, Patterns 2025,
    arXiv 2602.18507), whose exact formula is not public.
    """
    return weight.abs() * statistics.mean_absolute.unsqueeze(1)


def wanda(weight: Tensor, statistics: InputStatistics, seed: int) -> Tensor:
    """|w|·sqrt(E[x²]) (Sun et al., ICLR 2024), per position so that layers compare."""
    return weight.abs() * statistics.root_mean_square.unsqueeze(1)


def ria(weight: Tensor, statistics: InputStatistics, seed: int) -> Tensor:
    """(|w|/Σ_row|w| + |w|/Σ_column|w|)·sqrt(E[x²])^½ (Zhang et al., ICLR 2024, a = 0.5)."""
    size = weight.abs()
    tiny = torch.finfo(size.dtype).tiny  # an all-zero row or column scores 0, not NaN
    relative = size / size.sum(2, keepdim=True).clamp_min(tiny)
    relative = relative + size / size.sum(1, keepdim=True).clamp_min(tiny)
    return relative * statistics.root_mean_square.sqrt().unsqueeze(1)


def obs(weight: Tensor, statistics: InputStatistics, seed: int) -> Tensor:
    """|w|/sqrt([H⁻¹]_jj), H = E[xxᵀ] + λI: what removing the weight costs if others make up for it.

    Optimal Brain Surgeon (Hassibi, Stork, NIPS 1992), λ = 0.01 · mean(diag E[xxᵀ]) as in
    SparseGPT. Where no Σxxᵀ was counted, H is taken to be diagonal, and this is `wanda`.
    """
    if statistics.moments is None:
        return wanda(weight, statistics, seed)
    moments = statistics.moments.double()
    damping = 0.01 * moments.diagonal(dim1=1, dim2=2).mean(-1)
    damping = damping.masked_fill(damping == 0, 1)  # a group that never saw anything but zeros
    hessian = moments + damping[:, None, None] * torch.eye(moments.shape[-1], dtype=moments.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return weight.abs() / inverse.diagonal(dim1=1, dim2=2).sqrt().float().unsqueeze(1)


def contrast(
    weight: Tensor, statistics: InputStatistics, seed: int, generic: InputStatistics
) -> Tensor:
    """|w|·E|x|·(E|x| / E_g|x|)^γ: `fine_pruning`, raised where the user drives an input more
    than other people do (E_g) and lowered where less.

    Ours; γ = `CONTRAST_POWER`. The ratio is held within `CONTRAST_RANGE` either way, and is one
    where nobody drives the input: where both statistics are equal this is `fine_pruning`.
    """
    own, others = statistics.mean_absolute, generic.mean_absolute.to(statistics.absolute)
    ratio = torch.where(own == others, 1, own / others)  # 0/0 is one, x/0 meets the bound
    ratio = ratio.clamp(1 / CONTRAST_RANGE, CONTRAST_RANGE)
    return weight.abs() * (own * ratio**CONTRAST_POWER).unsqueeze(1)


def random(weight: Tensor, statistics: InputStatistics | None, seed: int) -> Tensor:
    """U(0, 1) from `seed`: the control that knows nothing."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(weight.shape, generator=generator)


@dataclass(frozen=True)
class Score:
    """One way to measure contribution, and what it needs: statistics of the inputs, and Σxxᵀ.

    needs_generic: other people's statistics are a fourth argument of the function.
    """

    function: Callable[..., Tensor]
    needs_statistics: bool
    needs_products: bool = False
    needs_generic: bool = False


SCORES = {
    "fine_pruning": Score(fine_pruning, needs_statistics=True),
    "wanda": Score(wanda, needs_statistics=True),
    "ria": Score(ria, needs_statistics=True),
    "obs": Score(obs, needs_statistics=True, needs_products=True),
    "contrast": Score(contrast, needs_statistics=True, needs_generic=True),
    "magnitude": Score(magnitude, needs_statistics=False),
    "random": Score(random, needs_statistics=False),
}
