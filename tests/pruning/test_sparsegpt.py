"""SparseGPT against itself done slowly, a weight and a column at a time."""

import pytest
import torch

from fpspeech.pruning import InputStatistics, PruningError
from fpspeech.pruning.least_squares import masked_least_squares
from fpspeech.pruning.masks import n_of_m, pruned_count
from fpspeech.pruning.sparsegpt import sparsegpt


def correlated(groups: int, inputs: int, positions: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(groups, positions, max(2, inputs // 3), generator=generator)
    mix = torch.randn(groups, max(2, inputs // 3), inputs, generator=generator)
    return few @ mix + 0.3 * torch.randn(groups, positions, inputs, generator=generator)


def statistics_of(x: torch.Tensor) -> InputStatistics:
    sums = (x.sum(1), x.abs().sum(1), x.square().sum(1))
    return InputStatistics(x.shape[1], *sums, x.transpose(1, 2) @ x, x.shape[1])


def slow(weight, x, sparsity, group, ridge, block):
    """Every removal is an OBS step of its own: solved for the columns to the right, at once."""
    groups, outputs, inputs = weight.shape
    weights = weight.double().clone()
    mask = torch.ones(weight.shape, dtype=torch.bool)
    hessians = []
    for g in range(groups):
        moments = x[g].double().T @ x[g].double() / x.shape[1]
        hessians.append(moments + ridge * moments.diagonal().mean() * torch.eye(inputs))
    pattern = n_of_m(group)

    def cost(g, o, j):
        # Of removing w_j when columns to its right make up for it: w² / [(H_j:,j:)⁻¹]_00.
        return (weights[g, o, j] ** 2 / torch.linalg.inv(hessians[g][j:, j:])[0, 0]).item()

    def prune_lowest(candidates, count, upto):
        for _, g, o, j in sorted((cost(*each), *each) for each in candidates)[:count]:
            if j < upto:
                mask[g, o, j] = False

    for column in range(inputs):
        if pattern is not None and column % pattern[1] == 0:
            keep, of = pattern
            for g in range(groups):
                for o in range(outputs):
                    some = [(g, o, j) for j in range(column, column + of)]
                    prune_lowest(some, of - keep, inputs)
        if pattern is None and column % block == 0:
            rows = [(g, o) for g in range(groups) for o in range(outputs)]
            if group == "row":
                for g, o in rows:
                    gone = int((~mask[g, o]).sum())
                    left = pruned_count(inputs, sparsity) - gone
                    prune_lowest([(g, o, j) for j in range(column, inputs)], left, column + block)
            else:
                left = pruned_count(weight.numel(), sparsity) - int((~mask).sum())
                everything = [(g, o, j) for g, o in rows for j in range(column, inputs)]
                prune_lowest(everything, left, column + block)
        for g in range(groups):
            inverse = torch.linalg.inv(hessians[g][column:, column:])
            for o in range(outputs):
                if not mask[g, o, column]:
                    force = weights[g, o, column] / inverse[0, 0]
                    weights[g, o, column:] -= force * inverse[0]
    return mask, weights.masked_fill(~mask, 0).float()


@pytest.mark.parametrize("group", ["row", "layer", "1:4", "2:4"])
@pytest.mark.parametrize("block", [4, 5, 128])
def test_equals_one_optimal_brain_surgeon_step_after_the_other(group, block, monkeypatch):
    monkeypatch.setattr("fpspeech.pruning.sparsegpt.BLOCK", block)
    weight = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(1))
    x = correlated(2, 12, 80)
    mask, fitted = sparsegpt(weight, statistics_of(x), 0.6, group, ridge=0.02)
    expected_mask, expected = slow(weight, x, 0.6, group, 0.02, block)
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(fitted, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("block", [8, 128])
def test_every_row_or_the_layer_loses_exactly_its_share(sparsity, block, monkeypatch):
    monkeypatch.setattr("fpspeech.pruning.sparsegpt.BLOCK", block)
    weight = torch.randn(2, 7, 100, generator=torch.Generator().manual_seed(1))
    statistics = statistics_of(correlated(2, 100, 300))
    mask, fitted = sparsegpt(weight, statistics, sparsity, "row")
    assert bool(((~mask).sum(-1) == pruned_count(100, sparsity)).all())
    assert not fitted[~mask].any()
    mask, fitted = sparsegpt(weight, statistics, sparsity, "layer")
    assert int((~mask).sum()) == pruned_count(1400, sparsity)
    assert not fitted[~mask].any()
    if sparsity == 0:
        assert torch.equal(fitted, weight)


@pytest.mark.parametrize("group", ["row", "layer", "2:4"])
@pytest.mark.parametrize("seed", range(3))
def test_the_output_error_is_below_that_of_its_mask_alone_and_above_the_best_fit(group, seed):
    weight = torch.randn(1, 16, 60, generator=torch.Generator().manual_seed(seed))
    x = correlated(1, 60, 500, seed)
    statistics = statistics_of(x)
    mask, fitted = sparsegpt(weight, statistics, 0.5, group)
    refitted = masked_least_squares(weight, mask, statistics)

    def error(found: torch.Tensor) -> float:
        """Of every row, in the norm that both minimise."""
        change = (found - weight)[0].double()
        moments = x[0].double().T @ x[0].double() / 500
        damping = 0.01 * moments.diagonal().mean()
        return float((change @ moments * change).sum() + damping * change.square().sum())

    assert error(refitted) <= error(fitted) < 0.5 * error(weight * mask)


def test_inputs_that_were_never_driven_go_first_and_the_others_keep_their_weights():
    x = torch.randn(1, 50, 10, generator=torch.Generator().manual_seed(0))
    x[..., [2, 5, 7]] = 0
    weight = torch.full((1, 2, 10), 0.1)
    weight[..., 5] = 100
    mask, fitted = sparsegpt(weight, statistics_of(x), 0.3)
    assert (~mask[0, 0]).nonzero().squeeze(1).tolist() == [2, 5, 7]
    torch.testing.assert_close(fitted[mask], weight[mask])
    nothing, _ = sparsegpt(weight, statistics_of(torch.zeros(1, 50, 10)), 0.3)
    assert bool(nothing[..., 5].all())
    assert int((~nothing).sum()) == 6


def test_statistics_without_products_are_refused():
    plain = InputStatistics(10, torch.ones(1, 4), torch.ones(1, 4), torch.ones(1, 4))
    with pytest.raises(PruningError, match="needs statistics with products"):
        sparsegpt(torch.ones(1, 1, 4), plain, 0.5)
