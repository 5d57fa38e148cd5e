"""Scores against loops over single weights."""

import pytest
import torch

from fpspeech.pruning import SCORES, InputStatistics
from fpspeech.pruning.scores import CONTRAST_POWER, CONTRAST_RANGE


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(50, 2, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def statistics(inputs) -> InputStatistics:
    return InputStatistics(50, inputs.sum(0), inputs.abs().sum(0), inputs.square().sum(0))


def slow_ria(weight, inputs, g, o, i):
    row = sum(abs(weight[g, o, j].item()) for j in range(4))
    column = sum(abs(weight[g, p, i].item()) for p in range(3))
    rms = (sum(x.item() ** 2 for x in inputs[:, g, i]) / 50) ** 0.5
    w = abs(weight[g, o, i].item())
    return (w / row + w / column) * rms**0.5


SLOW = {
    "magnitude": lambda w, x, g, o, i: abs(w[g, o, i].item()),
    "fine_pruning": lambda w, x, g, o, i: (
        sum(abs(w[g, o, i].item() * v.item()) for v in x[:, g, i]) / 50
    ),
    "wanda": lambda w, x, g, o, i: (
        abs(w[g, o, i].item()) * (sum(v.item() ** 2 for v in x[:, g, i]) / 50) ** 0.5
    ),
    "ria": slow_ria,
}


@pytest.mark.parametrize("name", SLOW)
def test_score_equals_a_loop_over_weights(name, weight, inputs, statistics):
    found = SCORES[name].function(weight, statistics, 0)
    for g in range(2):
        for o in range(3):
            for i in range(4):
                assert found[g, o, i].item() == pytest.approx(
                    SLOW[name](weight, inputs, g, o, i), rel=1e-5
                )


def test_obs_is_the_least_damage_when_all_other_weights_may_move(weight, inputs):
    """Against the best refit, by a direct solve, after each single weight is taken away."""
    products = torch.einsum("ngi,ngj->gij", inputs, inputs)
    sums = (inputs.sum(0), inputs.abs().sum(0), inputs.square().sum(0))
    score = SCORES["obs"].function(weight, InputStatistics(50, *sums, products, 50), 0)
    for g in range(2):
        moments = inputs[:, g].double().T @ inputs[:, g].double() / 50
        moments += 0.01 * moments.diagonal().mean() * torch.eye(4)
        for o in range(3):
            for i in range(4):
                others = [j for j in range(4) if j != i]
                removed = weight[g, o, i].double()
                # The others move by d to make up for it: minimise (d - w_i e_i)ᵀ H (d - w_i e_i).
                move = torch.linalg.solve(moments[others][:, others], removed * moments[others, i])
                change = torch.zeros(4).double()
                change[others], change[i] = move, -removed
                damage = change @ moments @ change
                assert score[g, o, i].item() ** 2 == pytest.approx(damage.item(), rel=1e-4)


def test_obs_without_products_is_wanda(weight, statistics):
    scores = [SCORES[name].function(weight, statistics, 0) for name in ("obs", "wanda")]
    assert torch.equal(*scores)


def test_random_score_is_the_seeds_alone(weight):
    score = SCORES["random"].function
    assert torch.equal(score(weight, None, 7), score(weight * 2, None, 7))
    assert not torch.equal(score(weight, None, 7), score(weight, None, 8))


def test_scores_that_need_no_statistics_work_without(weight):
    for name, score in SCORES.items():
        if not score.needs_statistics:
            assert score.function(weight, None, 0).shape == weight.shape, name


def test_dead_rows_and_columns_score_zero_not_nan(statistics):
    weight = torch.zeros(2, 3, 4)
    for name in ("ria", "wanda", "fine_pruning"):
        assert torch.equal(SCORES[name].function(weight, statistics, 0), weight)


def test_contrast_equals_a_loop_and_is_fine_pruning_where_nobody_differs(weight, inputs):
    def count(x):
        return InputStatistics(50, x.sum(0), x.abs().sum(0), x.square().sum(0))

    others = inputs.clone()
    others[..., 0] *= 2
    others[..., 1] *= 0.25
    others[..., 2] = 0  # only the user drives it
    inputs[..., 2] *= 5
    contrast = SCORES["contrast"].function
    found = contrast(weight, count(inputs), 0, count(others))
    for g in range(2):
        for i, ratio in enumerate([1 / 2, 4, CONTRAST_RANGE, 1]):
            mean = sum(abs(x.item()) for x in inputs[:, g, i]) / 50
            for o in range(3):
                expected = abs(weight[g, o, i].item()) * mean * ratio**CONTRAST_POWER
                assert found[g, o, i].item() == pytest.approx(expected, rel=1e-4)
    same = contrast(weight, count(inputs), 0, count(inputs))
    assert torch.equal(same, SCORES["fine_pruning"].function(weight, count(inputs), 0))
    silent = count(torch.zeros_like(inputs))
    assert not contrast(weight, silent, 0, silent).any()
