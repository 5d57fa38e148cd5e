"""The refined mask: never worse than the one it starts from, near the best there is."""

from itertools import combinations

import pytest
import torch

from fpspeech.pruning import InputStatistics
from fpspeech.pruning.alps import alps
from fpspeech.pruning.least_squares import masked_least_squares
from fpspeech.pruning.masks import mask_for, pruned_count
from fpspeech.pruning.scores import wanda


def correlated(groups: int, inputs: int, positions: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(groups, positions, max(2, inputs // 3), generator=generator)
    mix = torch.randn(groups, max(2, inputs // 3), inputs, generator=generator)
    return few @ mix + 0.3 * torch.randn(groups, positions, inputs, generator=generator)


def statistics_of(x: torch.Tensor) -> InputStatistics:
    sums = (x.sum(1), x.abs().sum(1), x.square().sum(1))
    return InputStatistics(x.shape[1], *sums, x.transpose(1, 2) @ x, x.shape[1])


def damage(weight, fitted, x, ridge=0.01):
    """E‖(W − W')x‖² + λ‖W − W'‖² of every row, straight from the inputs."""
    change = (weight - fitted).double()
    damping = ridge * x.double().square().mean((1, 2))[:, None]
    outputs = change @ x.double().transpose(1, 2)  # (groups, outputs, positions)
    return outputs.square().mean(-1) + damping * change.square().sum(-1)


@pytest.mark.parametrize("group", ["row", "layer", "2:4"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_exactly_as_sparse_and_never_worse_than_least_squares_under_the_first_mask(group, sparsity):
    sparsity = 0.5 if group == "2:4" else sparsity
    weight = torch.randn(2, 12, 40, generator=torch.Generator().manual_seed(1))
    x = correlated(2, 40, 200)
    statistics = statistics_of(x)
    first = mask_for(wanda(weight, statistics, 0), group, sparsity)
    mask, fitted = alps(weight, first, statistics, sparsity, group)
    if group == "row":
        assert bool(((~mask).sum(-1) == pruned_count(40, sparsity)).all())
    elif group == "2:4":
        assert bool((mask.reshape(2, 12, 10, 4).sum(-1) == 2).all())
    else:
        assert int((~mask).sum()) == pruned_count(960, sparsity)
    assert not fitted[~mask].any()
    torch.testing.assert_close(fitted, masked_least_squares(weight, mask, statistics))
    before = damage(weight, masked_least_squares(weight, first, statistics), x)
    after = damage(weight, fitted, x)
    if group != "layer":
        assert bool((after <= before * (1 + 1e-6)).all())
    assert after.sum() < 0.95 * before.sum()  # and better than only not worse


def test_near_the_best_of_all_masks():
    ratios = []
    for seed in range(20):
        weight = torch.randn(1, 1, 10, generator=torch.Generator().manual_seed(seed))
        x = correlated(1, 10, 100, seed)
        statistics = statistics_of(x)
        first = mask_for(wanda(weight, statistics, 0), "row", 0.5)
        _, fitted = alps(weight, first, statistics, 0.5)
        every = torch.zeros(252, 10, dtype=torch.bool)
        for number, kept in enumerate(combinations(range(10), 5)):
            every[number, list(kept)] = True
        rows = weight.expand(1, 252, 10)
        best = damage(rows, masked_least_squares(rows, every.unsqueeze(0), statistics), x).min()
        start = damage(weight, masked_least_squares(weight, first, statistics), x)
        found = damage(weight, fitted, x)
        assert found >= best * (1 - 1e-5)
        ratios.append((float(start / best), float(found / best)))
    starts, founds = zip(*ratios, strict=True)
    assert sorted(founds)[10] < 1.1  # half are all but optimal
    assert sum(founds) - 20 < 0.5 * (sum(starts) - 20)  # and half of what could be won is won


def test_the_same_bits_twice_and_dead_inputs_do_no_harm():
    weight = torch.randn(1, 6, 20, generator=torch.Generator().manual_seed(2))
    x = correlated(1, 20, 60)
    x[..., :5] = 0
    statistics = statistics_of(x)
    first = mask_for(wanda(weight, statistics, 0), "row", 0.6)
    runs = [alps(weight, first, statistics, 0.6) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))
    assert torch.isfinite(runs[0][1]).all()
    nothing = mask_for(weight, "row", 0.0)  # to prune: there is no other mask
    torch.testing.assert_close(alps(weight, nothing, statistics, 0.0)[1], weight)
    silent = statistics_of(torch.zeros(1, 60, 20))
    mask, fitted = alps(weight, mask_for(weight.abs(), "row", 0.6), silent, 0.6)
    assert torch.equal(fitted, weight * mask)
    assert torch.equal(mask, mask_for(weight.abs(), "row", 0.6))
