"""Masked least squares against a direct solve a row, and what it is for: smaller output error."""

import pytest
import torch
from torch import nn

from fpspeech.pruning import InputStatistics, PruningError
from fpspeech.pruning.layers import PrunableLayer
from fpspeech.pruning.least_squares import BATCH_VALUES, can_fit, masked_least_squares
from fpspeech.pruning.masks import layer_mask, row_mask


def correlated(groups: int, inputs: int, positions: int, seed: int = 0) -> torch.Tensor:
    """Inputs (groups, positions, inputs) with strong correlations, as activations have."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(groups, positions, max(2, inputs // 3), generator=generator)
    mix = torch.randn(groups, max(2, inputs // 3), inputs, generator=generator)
    return few @ mix + 0.1 * torch.randn(groups, positions, inputs, generator=generator)


def statistics_of(x: torch.Tensor) -> InputStatistics:
    sums = (x.sum(1), x.abs().sum(1), x.square().sum(1))
    return InputStatistics(x.shape[1], *sums, x.transpose(1, 2) @ x, x.shape[1])


def slow(weight, mask, x, ridge):
    """Stacks the data and √λ-scaled old weights into one tall system a row, and solves that."""
    expected = torch.zeros_like(weight)
    for g in range(weight.shape[0]):
        n = x.shape[1]
        damping = ridge * x[g].double().square().mean()
        for o in range(weight.shape[1]):
            kept = mask[g, o].nonzero().squeeze(1)
            if not len(kept):
                continue
            w = weight[g, o].double()
            tall = torch.cat([x[g].double()[:, kept] / n**0.5, damping**0.5 * torch.eye(len(kept))])
            right = torch.cat([x[g].double() @ w / n**0.5, damping**0.5 * w[kept]])
            expected[g, o, kept] = torch.linalg.lstsq(tall, right).solution.float()
    return expected


@pytest.mark.parametrize("batch_values", [1, BATCH_VALUES])
@pytest.mark.parametrize("make_mask", [row_mask, layer_mask])
@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.6, 0.9])
def test_equals_a_direct_solve_of_every_row(sparsity, make_mask, batch_values, monkeypatch):
    monkeypatch.setattr("fpspeech.pruning.least_squares.BATCH_VALUES", batch_values)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2, 5, 12, generator=generator)
    x = correlated(2, 12, 80)
    mask = make_mask(torch.rand(weight.shape, generator=generator), sparsity)
    found = masked_least_squares(weight, mask, statistics_of(x), ridge=0.02)
    torch.testing.assert_close(found, slow(weight, mask, x, 0.02), rtol=1e-3, atol=1e-4)
    assert not found[~mask].any()


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.6, 0.9])
def test_conjugate_gradients_come_to_the_same(sparsity, crossed, monkeypatch):
    """Large sets, made to be those of a small layer, solved as far as float32 goes."""
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(2, 5, 12, generator=generator)
    x = correlated(2, 12, 80)
    mask = layer_mask(torch.rand(weight.shape, generator=generator), sparsity)
    cross = x.transpose(1, 2) @ x.roll(1, dims=1) / 80 if crossed else None
    direct = masked_least_squares(weight, mask, statistics_of(x), 0.02, cross)
    monkeypatch.setattr("fpspeech.pruning.least_squares.SMALL", 0)
    monkeypatch.setattr("fpspeech.pruning.least_squares.DIRECT_SHARE", 0.0)
    monkeypatch.setattr("fpspeech.pruning.conjugate_gradients.TOLERANCE", 1e-6)
    found = masked_least_squares(weight, mask, statistics_of(x), 0.02, cross)
    torch.testing.assert_close(found, direct, rtol=1e-3, atol=1e-4)
    assert not found[~mask].any()


def test_a_full_mask_changes_nothing_and_an_empty_one_leaves_nothing():
    weight = torch.randn(1, 3, 6)
    statistics = statistics_of(correlated(1, 6, 40))
    full = torch.ones(1, 3, 6, dtype=torch.bool)
    torch.testing.assert_close(
        masked_least_squares(weight, full, statistics), weight, rtol=1e-4, atol=1e-5
    )
    assert not masked_least_squares(weight, ~full, statistics).any()


def test_no_other_weights_under_the_mask_do_better():
    """The gradient of the objective is zero on the kept set: it is the optimum for this mask."""
    weight = torch.randn(1, 4, 10).double()
    x = correlated(1, 10, 60).double()
    mask = row_mask(torch.rand(1, 4, 10), 0.5)
    fitted = masked_least_squares(weight, mask, statistics_of(x)).double()
    damping = 0.01 * x.square().mean()
    moments = x[0].T @ x[0] / 60
    gradient = (fitted[0] - weight[0]) @ moments + damping * (fitted[0] - weight[0])
    assert gradient[mask[0]].abs().max() < 1e-3 * (weight[0] @ moments).abs().max()


def test_the_output_error_is_far_below_that_of_the_mask_alone():
    weight = torch.randn(1, 32, 60, generator=torch.Generator().manual_seed(0))
    x = correlated(1, 60, 2000)
    mask = row_mask(weight.abs() * x.abs().mean(1, keepdim=True), 0.7)
    fitted = masked_least_squares(weight, mask, statistics_of(x))
    dense = x[0] @ weight[0].T
    alone = (x[0] @ (weight * mask)[0].T - dense).square().mean()
    updated = (x[0] @ fitted[0].T - dense).square().mean()
    assert updated < 0.3 * alone


def test_inputs_that_were_never_heard_keep_their_weights():
    x = torch.zeros(1, 30, 4)
    x[..., 0] = torch.randn(30)
    weight = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    mask = torch.tensor([[[True, False, True, True]]])
    found = masked_least_squares(weight, mask, statistics_of(x))
    torch.testing.assert_close(found, torch.tensor([[[1.0, 0.0, 3.0, 4.0]]]))
    nothing = statistics_of(torch.zeros(1, 30, 4))
    assert masked_least_squares(weight, mask, nothing).tolist() == [[[1.0, 0.0, 3.0, 4.0]]]


def test_statistics_without_products_are_refused():
    x = correlated(1, 4, 10)
    plain = InputStatistics(10, x.sum(1), x.abs().sum(1), x.square().sum(1))
    with pytest.raises(PruningError, match="needs statistics with products"):
        masked_least_squares(torch.ones(1, 1, 4), torch.ones(1, 1, 4).bool(), plain)


def test_layers_with_huge_products_are_not_fitted():
    assert can_fit(PrunableLayer("ffn", nn.Linear(3072, 4)))
    with torch.device("meta"):
        positional = nn.Conv1d(768, 768, 128, groups=16)
    assert not can_fit(PrunableLayer("pos_conv", positional))


def slow_cross(weight, mask, x, seen, ridge):
    """As `slow`, where the layer sees other inputs than those that gave the dense outputs."""
    expected = torch.zeros_like(weight)
    for g in range(weight.shape[0]):
        n = x.shape[1]
        damping = ridge * seen[g].double().square().mean()
        for o in range(weight.shape[1]):
            kept = mask[g, o].nonzero().squeeze(1)
            if not len(kept):
                continue
            w = weight[g, o].double()
            tall = torch.cat(
                [seen[g].double()[:, kept] / n**0.5, damping**0.5 * torch.eye(len(kept))]
            )
            right = torch.cat([x[g].double() @ w / n**0.5, damping**0.5 * w[kept]])
            expected[g, o, kept] = torch.linalg.lstsq(tall, right).solution.float()
    return expected


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6, 0.9])
def test_dense_outputs_are_reproduced_from_other_inputs(sparsity):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(2, 5, 12, generator=generator)
    x = correlated(2, 12, 80)
    seen = x + 0.5 * torch.randn(x.shape, generator=generator)
    mask = layer_mask(torch.rand(weight.shape, generator=generator), sparsity)
    cross = x.transpose(1, 2) @ seen / 80
    found = masked_least_squares(weight, mask, statistics_of(seen), 0.02, cross)
    expected = slow_cross(weight, mask, x, seen, 0.02)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    # Not what the fit without the cross moment gives: the test can tell the two apart.
    assert not torch.allclose(found, masked_least_squares(weight, mask, statistics_of(seen)), 0.01)


def test_a_cross_moment_of_the_same_inputs_changes_nothing():
    weight = torch.randn(1, 4, 10, generator=torch.Generator().manual_seed(3))
    statistics = statistics_of(correlated(1, 10, 60))
    for sparsity in (0.2, 0.7):
        mask = row_mask(torch.rand(weight.shape), sparsity)
        plain = masked_least_squares(weight, mask, statistics)
        crossed = masked_least_squares(weight, mask, statistics, cross=statistics.moments)
        torch.testing.assert_close(crossed, plain, rtol=1e-3, atol=1e-4)
