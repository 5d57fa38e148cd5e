import numpy as np
import pytest
import torch

from fpspeech.evaluation.accuracy import (
    accuracy,
    accuracy_change,
    decomposition,
    four_accuracies,
)

LABELS = [0, 0, 1, 1]
#                       class 0    1    2
DENSE = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 5.0], [0.0, 2.0, 1.0], [0.0, 1.0, 3.0]])
PRUNED = torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [2.0, 1.0, 0.0]])


def test_the_four_numbers_by_hand():
    four = four_accuracies(DENSE, PRUNED, LABELS, classes=[0, 1])
    assert four.dense_all.rate == 2 / 4  # 0, 2, 1, 2
    assert four.pruned_all.rate == 3 / 4  # 0, 0, 1, 0
    assert four.dense_user.rate == 3 / 4  # 0, 1, 1, 1
    assert four.pruned_user.rate == 3 / 4  # 0, 0, 1, 0
    assert (four.dense_all.among, four.dense_user.among) == (3, 2)
    assert four.change_all.difference == 1 / 4
    assert four.change_user.difference == 0
    assert four.gain_of_restricting == 1 / 4


def test_restricting_never_makes_a_right_answer_wrong():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 7, generator=generator)
    labels = torch.randint(3, (200,), generator=generator).tolist()
    everything, few = accuracy(logits, labels), accuracy(logits, labels, among=[0, 1, 2])
    assert not np.any(everything.right & ~few.right)
    assert few.rate > everything.rate


def test_the_interval_is_around_the_rate_and_the_same_seed_gives_the_same_one():
    logits = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))
    labels = [0] * 300
    found = accuracy(logits, labels, seed=3)
    assert found.interval.low < found.rate < found.interval.high
    assert found.interval == accuracy(logits, labels, seed=3).interval
    half = 1.96 * (found.rate * (1 - found.rate) / 300) ** 0.5
    assert found.interval.high - found.rate == pytest.approx(half, abs=0.01)


def test_a_change_is_positive_where_the_second_is_better_and_paired():
    worse, better = accuracy(DENSE, LABELS), accuracy(PRUNED, LABELS)
    change = accuracy_change(worse, better)
    assert change.difference == 0.25
    assert change.low <= 0.25 <= change.high
    assert change.probability_better > 0.5
    back = accuracy_change(better, worse)
    assert back.difference == -0.25
    assert (back.low, back.high) == (-change.high, -change.low)
    same = accuracy_change(worse, worse)
    assert (same.difference, same.low, same.high, same.probability_better) == (0, 0, 0, 0.5)
    assert str(same.difference) == "0.0"


def test_what_does_not_compare_is_refused():
    with pytest.raises(ValueError, match="do not compare"):
        accuracy_change(accuracy(DENSE, LABELS), accuracy(DENSE, LABELS, among=[0, 1]))
    with pytest.raises(ValueError, match="not among the 1 classes"):
        accuracy(DENSE, LABELS, among=[0])
    with pytest.raises(ValueError, match="a label a photo"):
        accuracy(DENSE, LABELS[:2])
    with pytest.raises(ValueError, match="0 photos"):
        accuracy(torch.empty(0, 3), [])


def test_a_decomposition_is_the_same_photos_counted_four_times():
    generator = torch.Generator().manual_seed(3)
    models = [torch.randn(40, 5, generator=generator) for _ in range(4)]
    labels = [number % 2 for number in range(40)]
    found = decomposition(*models, labels, [0, 1])
    dense, dense_prior, pruned, pruned_prior = (
        [accuracy(each, labels, among=among).rate for among in (None, [0, 1])] for each in models
    )
    assert [found.dense_prior_all.rate, found.dense_prior_user.rate] == dense_prior
    assert [found.pruned_all.rate, found.pruned_user.rate] == pruned
    for step, before, after in (
        (found.prior, dense, dense_prior),
        (found.pruning, dense, pruned),
        (found.pruning_with_prior, dense_prior, pruned_prior),
    ):
        for change, one, other in zip((step.all, step.user), before, after, strict=True):
            assert change.difference == pytest.approx(other - one)
            assert change.low <= change.difference <= change.high
