"""What to prune and how: the settings of the core, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from fpspeech.pruning.layers import PruningError
from fpspeech.pruning.masks import n_of_m
from fpspeech.pruning.scores import SCORES

GROUPS = ("row", "layer", "global")
UPDATES = ("none", "least_squares", "sparsegpt", "alps")
SHRINKAGES = ("none", "auto")
ORDERS = ("independent", "sequential")


@dataclass(frozen=True)
class PruningConfig:
    """What to prune and how much; every default of the pruning core stands here.

    sparsity: share of the selected weights set to zero, 0 <= sparsity < 1.
    score: a name of `SCORES`. group: which weights compete, "row", "layer", "global" or "N:M"
    (keep N of every M inputs; the sparsity is then 1 - N/M and `sparsity` must say so).
    cap: highest sparsity of a single layer under "global". seed: of the random score.
    overrides: (pattern of layer names, sparsity) pairs, the last that matches counts; for "row"
    and "layer" only, since "global" and "N:M" leave no choice a layer.
    update: what the kept weights become, "none" (they stay), "least_squares" (see
    `masked_least_squares`), "sparsegpt" (see `sparsegpt`: it makes the mask too, whatever the
    score, which counts for "global" alone) or "alps" (see `alps`: it refines the score's mask),
    with their ridge. bias: biases make up for what the weights lose, and weights that are updated
    are fitted together with them (see `centred`); a layer without one is updated as ever.
    shrinkage: how much of other people's statistics joins the user's, "none", "auto" (see
    `shrinkage_weight`) or the weight itself, 0 to 1. product_stride: Σxxᵀ is counted at every n-th
    position, since neighbouring frames are alike and it costs more than running the layer.
    order: "independent" (all layers from the dense model's inputs, one pass) or "sequential" (each
    layer behind its pruned predecessors, nearly a pass a layer, see `prune_sequentially`).
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
    bias: bool = False
    shrinkage: str | float = "none"
    product_stride: int = 4
    order: str = "independent"

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
        if self.order not in ORDERS:
            raise PruningError(f"no order is named {self.order!r}: expected one of {list(ORDERS)}")
        if self.order == "sequential" and self.group == "global":
            raise PruningError(
                "the group 'global' compares the weights of all layers at once, but in sequential "
                "order a layer is pruned before later ones are measured: use the group 'row' or "
                "'layer', or the order 'independent'"
            )
        if self.order == "sequential" and self.shrinkage != "none":
            raise PruningError(
                "shrinkage blends the user's statistics with those of other people behind the same "
                "dense layers; in sequential order the layers before are pruned: use the shrinkage "
                "'none' or the order 'independent'"
            )
        if self.product_stride < 1:
            raise PruningError(
                f"expected a product stride of 1 or more, found {self.product_stride}"
            )
        if not self.ridge > 0:
            raise PruningError(f"expected a ridge above 0, found {self.ridge:g}")
        if self.shrinkage not in SHRINKAGES and (
            isinstance(self.shrinkage, str) or not 0 <= self.shrinkage <= 1
        ):
            raise PruningError(
                "expected a shrinkage of 'none', 'auto' or a weight from 0 to 1, found "
                f"{self.shrinkage!r}"
            )

    def sparsity_for(self, name: str) -> float:
        """The sparsity of the layer of this name."""
        matching = [value for pattern, value in self.overrides if fnmatchcase(name, pattern)]
        return matching[-1] if matching else self.sparsity

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(N, M) when the group is an N:M pattern."""
        return n_of_m(self.group)

    @property
    def needs_generic(self) -> bool:
        """Whether the score or the shrinkage needs other people's statistics."""
        return SCORES[self.score].needs_generic or self.shrinkage != "none"
