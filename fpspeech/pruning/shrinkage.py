"""A few minutes of one voice are few: statistics of the user, shrunk toward those of many.

The blend (1 - a)·user + a·generic of second moments S and T is nearest to the user's true ones Σ,
in the Frobenius norm and on average over the data, for

    a = E‖S - Σ‖² / E‖S - T‖²

(Ledoit, Wolf 2004; Schäfer, Strimmer 2005 for a given target). The numerator is how uncertain S
is. For normal inputs with moments H and mean μ (Isserlis 1918), seen n independent times,

    E‖S - Σ‖² = Σ_ij Var(x_i x_j) / n = ((tr H)² + ‖H‖² - 2‖μ‖⁴) / n

with S and the measured mean in the place of H and μ. The denominator is measured. So the weight
falls to zero as data grows or the user turns out to be different from everybody, and rises to
one where the user differs from the generic statistics no more than chance would have it.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fpspeech.pruning.layers import PruningError
from fpspeech.pruning.statistics import InputStatistics

ALIKE = 10
"""Positions in a row that count as one independent one: 0.2 s of a Transformer's frames, about
two speech sounds. Set by judgement, not measured."""


def shrunk(
    user: InputStatistics, generic: InputStatistics, weight: float | None = None
) -> InputStatistics:
    """(1 - a)·user + a·generic for every mean and moment, with the user's counts.

    weight: a, 0 <= a <= 1; None: `shrinkage_weight`. Without user data, the generic ones.
    Raises PruningError when the two are of different layers or only the user's hold products.
    """
    _check(user, generic)
    if user.count == 0:
        return generic
    if weight is None:
        weight = shrinkage_weight(user, generic)
    if weight == 0:
        return user
    share = weight * user.count / generic.count

    def blend(own: Tensor, others: Tensor) -> Tensor:
        return (1 - weight) * own + share * others.to(own)

    blended = replace(
        user,
        total=blend(user.total, generic.total),
        absolute=blend(user.absolute, generic.absolute),
        square=blend(user.square, generic.square),
    )
    if user.products is None or generic.products is None:
        return blended
    # In place of one large temporary more.
    products = user.products * (1 - weight)
    products.add_(generic.products, alpha=weight * user.product_count / generic.product_count)
    mean = (1 - weight) * user.product_mean + weight * generic.product_mean.to(user.total)
    return replace(blended, products=products, product_total=mean * user.product_count)


def shrinkage_weight(user: InputStatistics, generic: InputStatistics) -> float:
    """The weight of the generic statistics by the formula at the top of this module, 0 to 1.

    From the whole moment matrices where both hold products, from their diagonals otherwise.
    """
    _check(user, generic)
    if user.count == 0:
        return 1.0
    # ‖μ‖² and the like go over all groups: they are blocks of one matrix, zero between groups.
    if user.moments is None or generic.moments is None:
        own = user.square.double() / user.count
        others = generic.square.double() / generic.count
        mean = user.mean.double()
        spread = 2 * (own.square() - mean.pow(4)).sum()
        seen = user.count / ALIKE
    else:
        own, others = user.moments.double(), generic.moments.double()
        mean = user.product_mean.double()
        trace = own.diagonal(dim1=1, dim2=2).sum(-1)
        spread = (trace.square() - 2 * mean.square().sum(-1).square()).sum() + own.square().sum()
        seen = min(user.count / ALIKE, user.product_count)
    distance = float((own - others).square().sum())
    uncertainty = float(spread.clamp_min(0)) / seen
    return min(1.0, uncertainty / distance) if distance > 0 else 1.0


def _check(user: InputStatistics, generic: InputStatistics) -> None:
    if user.total.shape != generic.total.shape:
        raise PruningError(
            f"the user's statistics are of inputs of shape {tuple(user.total.shape)}, the generic "
            f"ones {tuple(generic.total.shape)}: make the generic ones with the same model"
        )
    if generic.count == 0:
        raise PruningError("the generic statistics have seen nothing: make them anew")
    if user.products is not None and generic.products is None:
        raise PruningError(
            "the generic statistics hold no products (Σxxᵀ), the user's do: make them with the "
            "same settings"
        )
