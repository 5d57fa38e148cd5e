"""One layer's weights and bias together, against a direct solve with a column of ones."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fpspeech.pruning import InputStatistics, PruningConfig, PruningError
from fpspeech.pruning.layer_update import update_layer
from fpspeech.pruning.layers import PrunableLayer
from fpspeech.pruning.least_squares import centred, compensated_bias
from fpspeech.pruning.masks import mask_for, row_mask


def inputs_with_means(groups: int, inputs: int, positions: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(groups, positions, max(2, inputs // 3), generator=generator)
    mix = torch.randn(groups, max(2, inputs // 3), inputs, generator=generator)
    means = 2 * torch.randn(groups, 1, inputs, generator=generator)
    return few @ mix + means + 0.3 * torch.randn(groups, positions, inputs, generator=generator)


def statistics_of(x: torch.Tensor) -> InputStatistics:
    sums = (x.sum(1), x.abs().sum(1), x.square().sum(1))
    return InputStatistics(x.shape[1], *sums, x.transpose(1, 2) @ x, x.shape[1])


@pytest.fixture
def layer() -> PrunableLayer:
    torch.manual_seed(0)
    return PrunableLayer("conv", nn.Conv1d(12, 10, 2, groups=2))  # (2, 5, 12)


def outputs(weight, bias, x):
    """(groups, outputs, positions)"""
    shift = 0 if bias is None else bias.double().reshape(weight.shape[0], -1, 1)
    return weight.double() @ x.double().transpose(1, 2) + shift


def whole(mask, kept):
    return torch.zeros(mask.shape).masked_scatter(mask, kept.float())


@pytest.mark.parametrize("sparsity", [0.3, 0.7])
@pytest.mark.parametrize("other", [False, True])
def test_weights_and_bias_are_the_optimum_of_both_together(layer, sparsity, other):
    x = inputs_with_means(2, 12, 90)
    seen = x + inputs_with_means(2, 12, 90, seed=5) if other else x
    found = statistics_of(seen)
    config = PruningConfig(sparsity, bias=True, ridge=0.02)
    weight, bias = layer.weight(), layer.module.bias.detach()
    mask = row_mask(torch.rand(weight.shape), sparsity)
    cross = x.transpose(1, 2) @ seen / 90 if other else None
    mean = x.mean(1) if other else None
    updated = update_layer(layer, mask, found, config, cross, mean)
    dense = outputs(weight, bias, x)
    refitted = whole(mask, updated.kept)
    for g in range(2):
        damping = 0.02 * seen[g].double().var(0, correction=0).mean()
        for o in range(5):
            kept = mask[g, o].nonzero().squeeze(1)
            # One tall system: the data with a column of ones, under it √λ times the old weights.
            data = torch.cat([seen[g].double()[:, kept], torch.ones(90, 1)], 1) / 90**0.5
            hold = damping**0.5 * torch.eye(len(kept), len(kept) + 1)
            right = torch.cat([dense[g, o] / 90**0.5, damping**0.5 * weight[g, o, kept].double()])
            solved = torch.linalg.lstsq(torch.cat([data, hold.double()]), right).solution.float()
            torch.testing.assert_close(refitted[g, o, kept], solved[:-1], rtol=5e-3, atol=1e-3)
            torch.testing.assert_close(updated.bias[5 * g + o], solved[-1], rtol=5e-3, atol=5e-3)
    # Rounding to float16 moves no mean: the bias was computed for the rounded weights.
    gap = outputs(refitted, updated.bias, seen).mean(-1) - dense.mean(-1)
    assert gap.abs().max() < 1e-5


@pytest.mark.parametrize("update", ["none", "least_squares", "sparsegpt", "alps"])
def test_the_bias_keeps_the_mean_of_every_output_and_the_error_does_not_grow(layer, update):
    x = inputs_with_means(2, 12, 90)
    found = statistics_of(x)
    mask = row_mask(layer.weight().abs() * found.root_mean_square.unsqueeze(1), 0.5)
    given = None if update == "sparsegpt" else mask
    errors = []
    for bias in (False, True):
        config = PruningConfig(0.5, update=update, bias=bias)
        updated = update_layer(layer, given, found, config)
        weight = layer.weight()
        after = weight * updated.mask if updated.kept is None else whole(updated.mask, updated.kept)
        assert (updated.bias is None) == (not bias)
        shift = updated.bias if bias else layer.module.bias.detach()
        change = outputs(after, shift, x) - outputs(weight, layer.module.bias.detach(), x)
        errors.append(change.square().mean())
        if bias:
            assert change.mean(-1).abs().max() < 1e-5
    assert errors[1] < errors[0]


def test_a_layer_without_a_bias_is_updated_as_ever():
    layer = PrunableLayer("lin", nn.Linear(12, 5, bias=False))
    found = statistics_of(inputs_with_means(1, 12, 90))
    mask = row_mask(layer.weight().abs(), 0.5)
    plain, asked = (
        update_layer(layer, mask, found, PruningConfig(0.5, bias=bias)) for bias in (False, True)
    )
    assert asked.bias is None
    assert torch.equal(plain.kept, asked.kept)


def test_compensation_alone_is_the_sum_over_pruned_weights(layer):
    found = statistics_of(inputs_with_means(2, 12, 90))
    weight = layer.weight()
    mask = row_mask(torch.rand(weight.shape), 0.5)
    bias = compensated_bias(torch.zeros(10), weight, weight * mask, found)
    for g in range(2):
        for o in range(5):
            lost = sum(
                weight[g, o, j].item() * (found.total[g, j].item() / 90)
                for j in range(12)
                if not mask[g, o, j]
            )
            assert bias[5 * g + o].item() == pytest.approx(lost, rel=1e-4, abs=1e-5)


def test_the_covariance_is_that_of_the_positions_of_the_products():
    x = inputs_with_means(1, 6, 80).double()
    part = x[:, ::4]
    sums = (x.sum(1), x.abs().sum(1), x.square().sum(1))
    found = InputStatistics(80, *sums, part.transpose(1, 2) @ part, 20, part.sum(1))
    covariance = torch.cov(part[0].T, correction=0)
    torch.testing.assert_close(centred(found).moments[0], covariance)
    with pytest.raises(PruningError, match="observe the data anew"):
        centred(replace(found, product_total=None))


@pytest.mark.parametrize("update", ["sparsegpt", "alps"])
def test_joint_updates_reproduce_dense_outputs_from_other_inputs(layer, update):
    """With every mask tried: the chosen one comes out near the best of all for these outputs."""
    small = PrunableLayer("lin", nn.Linear(8, 3, bias=False))
    x = inputs_with_means(1, 8, 100)
    seen = x + 0.5 * inputs_with_means(1, 8, 100, seed=3)
    found, cross = statistics_of(seen), x.transpose(1, 2) @ seen / 100
    mask = mask_for(small.weight().abs() * found.root_mean_square.unsqueeze(1), "row", 0.5)
    config = PruningConfig(0.5, update=update)
    dense = outputs(small.weight(), None, x)

    def error(updated) -> float:
        after = whole(updated.mask, updated.kept)
        return float((outputs(after, None, seen) - dense).square().mean())

    aware = update_layer(small, mask, found, config, cross)
    unaware = update_layer(small, mask, found, config)
    assert error(aware) < error(unaware)


def test_what_is_missing_is_named(layer):
    with pytest.raises(PruningError, match=r"the bias of conv needs the mean.*no statistics"):
        update_layer(
            layer,
            torch.ones(layer.shape).bool(),
            None,
            PruningConfig(score="magnitude", update="none", bias=True),
        )
    found = statistics_of(inputs_with_means(2, 12, 90))
    with pytest.raises(PruningError, match="dense_mean"):
        update_layer(
            layer,
            torch.ones(layer.shape).bool(),
            found,
            PruningConfig(bias=True),
            cross=found.moments,
        )
