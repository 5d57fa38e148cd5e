"""The blend, its limits, and its weight against a loop and against the best of many weights."""

from dataclasses import replace

import pytest
import torch

from fpspeech.pruning import InputStatistics, PruningError
from fpspeech.pruning.shrinkage import ALIKE, shrinkage_weight, shrunk


def statistics_of(x: torch.Tensor, stride: int = 1) -> InputStatistics:
    """x: (groups, positions, inputs)"""
    sums = (x.sum(1), x.abs().sum(1), x.square().sum(1))
    part = x[:, ::stride]
    products = part.transpose(1, 2) @ part
    return InputStatistics(x.shape[1], *sums, products, part.shape[1], part.sum(1))


@pytest.fixture
def user() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 40, 5, generator=generator).double() @ torch.rand(2, 5, 5).double()


@pytest.fixture
def generic() -> torch.Tensor:
    return torch.randn(2, 90, 5, generator=torch.Generator().manual_seed(1)).double()


def test_every_mean_and_moment_is_the_weighted_one(user, generic):
    own, others = statistics_of(user, 4), statistics_of(generic, 3)
    found = shrunk(own, others, 0.3)
    for name in ("mean", "mean_absolute", "moments", "product_mean"):
        expected = 0.7 * getattr(own, name) + 0.3 * getattr(others, name)
        torch.testing.assert_close(getattr(found, name), expected)
    square = 0.7 * own.root_mean_square.square() + 0.3 * others.root_mean_square.square()
    torch.testing.assert_close(found.root_mean_square.square(), square)
    assert (found.count, found.product_count) == (own.count, own.product_count)


def test_the_limits(user, generic):
    own, others = statistics_of(user), statistics_of(generic)
    assert shrunk(own, others, 0) is own
    torch.testing.assert_close(shrunk(own, others, 1.0).moments, others.moments)
    nothing = InputStatistics(0, *(torch.zeros(2, 5) for _ in range(3)))
    assert shrunk(nothing, others) is others
    assert shrinkage_weight(nothing, others) == 1
    # Ever more of the same data: the user's own.
    weights = []
    for times in (1, 10, 100, 10_000):
        more = own
        more = replace(
            own,
            count=own.count * times,
            total=own.total * times,
            absolute=own.absolute * times,
            square=own.square * times,
            products=own.products * times,
            product_count=own.product_count * times,
            product_total=own.product_total * times,
        )
        weights.append(shrinkage_weight(more, others))
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] < 1e-2
    torch.testing.assert_close(shrunk(more, others).moments, own.moments, rtol=0.05, atol=0.05)


def test_equal_statistics_stay(user):
    own = statistics_of(user)
    assert shrinkage_weight(own, own) == 1
    for weight in (0.4, None):
        found = shrunk(own, own, weight)
        torch.testing.assert_close(found.products, own.products)
        torch.testing.assert_close(found.absolute, own.absolute)


@pytest.mark.parametrize("products", [True, False])
def test_the_weight_equals_a_loop_over_pairs_of_inputs(user, generic, products):
    own, others = statistics_of(user * 3), statistics_of(generic)
    if not products:
        own, others = (
            replace(each, products=None, product_count=0, product_total=None)
            for each in (own, others)
        )
    uncertainty = distance = 0.0
    for g in range(2):
        for i in range(5):
            for j in range(5) if products else [i]:
                s = [(3 * user[g, :, a] * 3 * user[g, :, b]).mean().item() for a, b in
                     ((i, j), (i, i), (j, j))]  # fmt: skip
                m = [3 * user[g, :, a].mean().item() for a in (i, j)]
                # Isserlis: Var(x_i x_j) of normal inputs
                uncertainty += s[1] * s[2] + s[0] ** 2 - 2 * m[0] ** 2 * m[1] ** 2
                distance += (s[0] - (generic[g, :, i] * generic[g, :, j]).mean().item()) ** 2
    expected = uncertainty / (40 / ALIKE) / distance
    assert expected < 1
    assert shrinkage_weight(own, others) == pytest.approx(expected)


def test_the_weight_is_near_the_best_one_for_normal_inputs(monkeypatch):
    """Against the weight that comes nearest to the true moments, over many draws."""
    monkeypatch.setattr("fpspeech.pruning.shrinkage.ALIKE", 1)  # the draws are independent
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator).double() / 2
    mean = torch.tensor([1.0, 0, 0, -1, 0, 0]).double()
    true = mix.T @ mix + mean.outer(mean)
    others = statistics_of(torch.randn(1, 20_000, 6, generator=generator).double())
    grid = torch.linspace(0, 1, 101).double()
    losses, weights = torch.zeros(101).double(), []
    for _ in range(300):
        x = torch.randn(1, 30, 6, generator=generator).double() @ mix + mean
        own = statistics_of(x)
        weights.append(shrinkage_weight(own, others))
        away = own.moments[0] - true
        step = others.moments[0] - own.moments[0]
        losses += (away + grid[:, None, None] * step).square().sum((1, 2))
    best = float(grid[losses.argmin()])
    assert 0.05 < best < 0.95
    assert sum(weights) / 300 == pytest.approx(best, abs=0.08)


def test_what_does_not_fit_is_refused(user, generic):
    own, others = statistics_of(user), statistics_of(generic)
    with pytest.raises(PruningError, match=r"shape \(2, 5\).*generic ones \(2, 4\)"):
        shrunk(own, statistics_of(generic[..., :4]))
    with pytest.raises(PruningError, match="generic statistics hold no products"):
        shrunk(own, replace(others, products=None))
    with pytest.raises(PruningError, match="have seen nothing"):
        shrunk(own, replace(others, count=0))
