"""Masks are exact by index, ties included, and equal a slow sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fpspeech.pruning import PruningError, pack, unpack
from fpspeech.pruning.masks import (
    global_masks,
    layer_mask,
    mask_for,
    n_of_m,
    n_of_m_mask,
    pruned_count,
    row_mask,
)


def slow_lowest(values: list[float], count: int) -> list[bool]:
    """True where kept: the `count` lowest go, the earlier one of two equal ones first."""
    order = sorted(range(len(values)), key=lambda index: (values[index], index))
    pruned = set(order[:count])
    return [index not in pruned for index in range(len(values))]


scores = st.integers(0, 2**31).flatmap(
    lambda seed: st.tuples(
        st.integers(1, 3), st.integers(1, 5), st.integers(1, 40), st.sampled_from([2, 1000])
    ).map(
        lambda shape: torch.randint(
            0, shape[3], shape[:3], generator=torch.Generator().manual_seed(seed)
        ).float()
    )
)


@settings(max_examples=60, deadline=None)
@given(scores, st.floats(0, 0.99))
def test_row_mask_equals_a_slow_sort_of_every_row(score, sparsity):
    mask = row_mask(score, sparsity)
    count = pruned_count(score.shape[2], sparsity)
    for group in range(score.shape[0]):
        for row in range(score.shape[1]):
            expected = slow_lowest(score[group, row].tolist(), count)
            assert mask[group, row].tolist() == expected


@settings(max_examples=60, deadline=None)
@given(scores, st.floats(0, 0.99))
def test_layer_mask_equals_a_slow_sort_of_the_layer(score, sparsity):
    mask = layer_mask(score, sparsity)
    count = pruned_count(score.numel(), sparsity)
    assert mask.reshape(-1).tolist() == slow_lowest(score.reshape(-1).tolist(), count)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.7, 0.9])
def test_constant_scores_are_pruned_exactly(sparsity):
    """A threshold would prune all of them or none."""
    score = torch.ones(2, 8, 100)
    assert int((~row_mask(score, sparsity)).sum()) == 16 * round(100 * sparsity)
    assert int((~layer_mask(score, sparsity)).sum()) == round(1600 * sparsity)


def test_count_survives_binary_fractions():
    assert pruned_count(100, 0.29) == 29  # int(100 * 0.29) is 28
    assert pruned_count(10, 0.7) == 7
    assert pruned_count(288, 0.7) == 201


def test_row_mask_follows_a_permutation_of_the_inputs():
    score = torch.rand(1, 6, 30, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    assert torch.equal(row_mask(score[..., order], 0.6), row_mask(score, 0.6)[..., order])


def test_masks_are_nested_as_sparsity_grows():
    score = torch.randint(0, 5, (2, 6, 50), generator=torch.Generator().manual_seed(0)).float()
    dense_to_sparse = [row_mask(score, sparsity) for sparsity in (0.1, 0.4, 0.7, 0.9)]
    for more, less in zip(dense_to_sparse[1:], dense_to_sparse[:-1], strict=True):
        assert bool((more <= less).all())


def slow_global(scores: dict[str, torch.Tensor], sparsity: float, cap: float):
    candidates = []
    for position, score in enumerate(scores.values()):
        flat = [value / score.mean().item() for value in score.reshape(-1).tolist()]
        order = sorted(range(len(flat)), key=lambda index: (flat[index], index))
        allowed = order[: int(len(flat) * cap + 1e-6)]
        candidates += [(flat[index], position, index) for index in allowed]
    total = sum(score.numel() for score in scores.values())
    pruned = sorted(candidates)[: int(total * sparsity + 1e-6)]
    return {(position, index) for _, position, index in pruned}


@pytest.mark.parametrize(("sparsity", "cap"), [(0.5, 0.9), (0.7, 0.8), (0.3, 1.0), (0.6, 0.6)])
def test_global_masks_equal_a_slow_sort_of_everything_under_the_cap(sparsity, cap):
    generator = torch.Generator().manual_seed(3)
    scores = {
        "spread": torch.rand(1, 5, 20, generator=generator) ** 4,
        "even": torch.rand(2, 4, 10, generator=generator) * 0.01 + 1,
    }
    masks = global_masks(scores, sparsity, cap)
    pruned = slow_global(scores, sparsity, cap)
    found = {
        (position, index)
        for position, name in enumerate(scores)
        for index, kept in enumerate(masks[name].reshape(-1).tolist())
        if not kept
    }
    assert found == pruned
    assert len(found) == pruned_count(180, sparsity)


def test_global_cap_holds_and_the_budget_is_met_elsewhere():
    scores = {"low": torch.rand(1, 10, 10) ** 8, "high": torch.rand(1, 10, 10) + 10}
    masks = global_masks(scores, 0.5, cap=0.6)
    assert int((~masks["low"]).sum()) == 60
    assert int((~masks["high"]).sum()) == 40


def test_global_cap_below_the_sparsity_is_an_error():
    with pytest.raises(PruningError, match="raise the cap"):
        global_masks({"a": torch.rand(1, 2, 5)}, 0.8, cap=0.5)


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (4, 8), (3, 3)])
def test_n_of_m_keeps_the_highest_of_every_m(keep, of):
    score = torch.randint(0, 4, (2, 3, 24), generator=torch.Generator().manual_seed(0)).float()
    mask = n_of_m_mask(score, keep, of)
    for group in range(2):
        for row in range(3):
            for start in range(0, 24, of):
                part = score[group, row, start : start + of].tolist()
                assert mask[group, row, start : start + of].tolist() == slow_lowest(part, of - keep)


def test_n_of_m_refuses_rows_that_do_not_divide():
    with pytest.raises(PruningError, match="rows of 10 inputs do not divide into groups of 4"):
        n_of_m_mask(torch.rand(1, 2, 10), 2, 4)


def test_nan_scores_are_an_error():
    with pytest.raises(PruningError, match="NaN"):
        row_mask(torch.tensor([[[1.0, float("nan")]]]), 0.5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_packed_bits_round_trip_and_are_little_endian(bits):
    mask = torch.tensor(bits)
    packed = pack(mask)
    assert packed.numel() == (len(bits) + 7) // 8
    for index, bit in enumerate(bits):
        assert bool(packed[index // 8].item() >> (index % 8) & 1) == bit
    assert torch.equal(unpack(packed, (len(bits),)), mask)


def test_unpack_refuses_the_wrong_size():
    with pytest.raises(PruningError, match="takes 2 bytes"):
        unpack(torch.zeros(3, dtype=torch.uint8), (2, 5))


def test_a_group_by_name():
    score = torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mask_for(score, "row", 0.3), row_mask(score, 0.3))
    assert torch.equal(mask_for(score, "layer", 0.3), layer_mask(score, 0.3))
    assert torch.equal(mask_for(score, "1:4", 0.75), n_of_m_mask(score, 1, 4))
    assert [n_of_m(name) for name in ("2:4", "row", "2:", "a:b")] == [(2, 4), None, None, None]
