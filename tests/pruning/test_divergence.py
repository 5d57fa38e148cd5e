"""Divergences of posteriors against a loop over positions and classes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fpspeech.pruning import PruningError, divergence
from fpspeech.pruning.divergence import Divergence, kullback_leibler


def posteriors(logits: list[float]) -> list[float]:
    powers = [math.exp(each) for each in logits]
    return [each / math.fsum(powers) for each in powers]


def slow_kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def slow(dense, other):
    total = [
        slow_kl(posteriors(one), posteriors(two))
        for one, two in zip(
            dense.reshape(-1, dense.shape[-1]).tolist(),
            other.reshape(-1, other.shape[-1]).tolist(),
            strict=True,
        )
    ]
    return math.fsum(total), len(total)


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(5,), (7, 4), (2, 3, 6)])
def test_divergence_equals_a_loop(shape):
    dense, other = logits(*shape), logits(*shape, seed=1)
    total, positions = slow(dense, other)
    found = kullback_leibler(dense, other)
    assert found.total == pytest.approx(total, rel=1e-9)
    assert found.positions == positions
    assert found.mean == pytest.approx(total / positions, rel=1e-9)


def test_sums_of_pieces_are_the_sum_of_the_whole(monkeypatch):
    dense, other = logits(50, 6), logits(50, 6, seed=1)
    whole = kullback_leibler(dense, other)
    pieces = zip(dense.split(7), other.split(7), strict=True)
    streamed = sum((kullback_leibler(d, o) for d, o in pieces), Divergence())
    monkeypatch.setattr(divergence, "VALUES", 25)  # four positions at a time
    in_pieces = kullback_leibler(dense, other)
    assert streamed.positions == in_pieces.positions == whole.positions == 50
    assert streamed.total == pytest.approx(whole.total, rel=1e-12)
    assert in_pieces.total == pytest.approx(whole.total, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(-50, 50))
def test_divergence_is_no_less_than_zero_and_ignores_what_softmax_ignores(seed, shift):
    dense, other = logits(6, 5, seed=seed), logits(6, 5, seed=seed + 1)
    assert kullback_leibler(dense, dense + shift).total == pytest.approx(0, abs=1e-4)
    found = kullback_leibler(dense, other).total
    assert found > 0
    as_logs = kullback_leibler(dense.double().log_softmax(-1), other.double().log_softmax(-1))
    assert as_logs.total == pytest.approx(found, rel=1e-9)


def test_float64_finds_what_float32_would_lose():
    dense = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    other = torch.tensor([[1e-6, 0.0]], dtype=torch.float64)
    assert kullback_leibler(dense, other).total == pytest.approx(1e-12 / 8, rel=1e-3)


def test_classes_that_are_ruled_out():
    dense, other = torch.tensor([[0.0, 1.0, -math.inf]]), torch.tensor([[1.0, 0.0, -math.inf]])
    expected = slow_kl(posteriors([0.0, 1.0]), posteriors([1.0, 0.0]))
    assert kullback_leibler(dense, other).total == pytest.approx(expected)
    certain = torch.tensor([[1.0, -math.inf, -math.inf]])
    assert kullback_leibler(dense, certain).total == math.inf


def test_what_cannot_be_compared_is_an_error():
    with pytest.raises(PruningError, match=r"shape \(3, 4\) and \(2, 4\)"):
        kullback_leibler(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(PruningError, match="NaN"):
        kullback_leibler(torch.zeros(1, 2), torch.tensor([[math.nan, 0.0]]))
    with pytest.raises(PruningError, match="no position"):
        _ = kullback_leibler(torch.zeros(0, 4), torch.zeros(0, 4)).mean
