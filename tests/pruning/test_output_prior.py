"""Shares of classes by EM, against a slow loop and known mixtures; the output layer with them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fpspeech.pruning import PrunableLayer, PruningError, apply_masks
from fpspeech.pruning.output_prior import (
    LEAST_PHOTOS,
    PRUNED_BIAS,
    Prior,
    estimate_prior,
    log_prior_shift,
    output_layer_with_prior,
    with_prior,
)


def slow_em(posteriors, training, rounds) -> list[float]:
    """Saerens et al. 2002, equation 8, a photo and a class at a time."""
    photos, classes = len(posteriors), len(training)
    shares = list(training)
    for _ in range(rounds):
        sums = [0.0] * classes
        for row in posteriors:
            weighted = [p * q / t for p, q, t in zip(row, shares, training, strict=True)]
            for c in range(classes):
                sums[c] += weighted[c] / sum(weighted)
        shares = [total / photos for total in sums]
    return shares


def slow_log_likelihood(posteriors, training, shares) -> float:
    return sum(
        math.log(sum(p * q / t for p, q, t in zip(row, shares, training, strict=True)))
        for row in posteriors
    )


def some_posteriors(photos: int, classes: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(photos, classes, generator=generator)).double().softmax(1)


def some_shares(classes: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, generator=generator).double().softmax(0)


def gaussian_posteriors(shares, training, photos: int, seed: int, distance: float = 2.5):
    """Exact p(c|x) under `training` for points drawn with other shares; and what each point is."""
    classes = len(shares)
    generator = torch.Generator().manual_seed(seed)
    counts = (torch.tensor(shares) * photos).round().long()
    labels = torch.arange(classes).repeat_interleave(counts)
    points = torch.eye(classes).double()[labels] * distance
    points += torch.randn(points.shape, generator=generator).double()
    log_density = distance * points - distance**2 / 2  # of each class, up to a term a point
    return (log_density + torch.tensor(training).double().log()).softmax(1), labels


problems = st.tuples(st.integers(1, 12), st.integers(2, 6), st.integers(0, 10_000))


@settings(max_examples=40, deadline=None)
@given(problems, st.integers(0, 30))
def test_it_is_the_slow_loop(problem, rounds):
    posteriors, training = some_posteriors(*problem), some_shares(problem[1], problem[2] + 1)
    found = estimate_prior(posteriors, training, rounds=rounds, tolerance=0.0)
    expected = slow_em(posteriors.tolist(), training.tolist(), rounds)
    torch.testing.assert_close(found.shares, torch.tensor(expected).double())
    likelihood = slow_log_likelihood(posteriors.tolist(), training.tolist(), expected)
    assert found.log_likelihood == pytest.approx(likelihood, abs=1e-9)
    assert found.photos == len(posteriors)


@settings(max_examples=20, deadline=None)
@given(problems)
def test_the_likelihood_never_falls_and_shares_are_shares(problem):
    posteriors, training = some_posteriors(*problem), some_shares(problem[1], problem[2] + 1)
    before = 0.0  # of the training shares
    for rounds in range(12):
        found = estimate_prior(posteriors, training, rounds=rounds, tolerance=0.0)
        assert found.log_likelihood >= before - 1e-9
        before = found.log_likelihood
        assert float(found.shares.sum()) == pytest.approx(1)
        assert (found.shares >= 0).all()


def test_at_the_end_no_other_shares_are_more_likely():
    posteriors = some_posteriors(60, 4, 5)
    found = estimate_prior(posteriors, rounds=20_000, tolerance=0.0)
    training = [0.25] * 4
    for seed in range(300):
        other = some_shares(4, seed)
        assert slow_log_likelihood(posteriors.tolist(), training, other.tolist()) <= (
            found.log_likelihood + 1e-6
        )


@pytest.mark.parametrize("training", [(0.25, 0.25, 0.25, 0.25), (0.4, 0.3, 0.2, 0.1)])
def test_a_known_mixture_is_recovered(training):
    shares = (0.6, 0.3, 0.1, 0.0)
    posteriors, labels = gaussian_posteriors(shares, training, photos=9000, seed=0, distance=1.5)
    found = estimate_prior(posteriors, torch.tensor(training))
    torch.testing.assert_close(found.shares, torch.tensor(shares).double(), atol=0.03, rtol=0)
    assert found.differs
    counted = posteriors.mean(0)  # what the answers say without EM is far from it
    assert float((counted - torch.tensor(shares)).abs().max()) > 0.1
    # And the answers are better with it.
    right = [
        float((each.argmax(1) == labels).double().mean())
        for each in (posteriors, with_prior(posteriors.log(), found))
    ]
    assert right[1] > right[0] + 0.02


def test_posteriors_that_average_to_the_training_shares_are_a_fixed_point():
    training = torch.tensor([0.5, 0.3, 0.2]).double()
    posteriors = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.3, 0.2], [0.1, 0.55, 0.35]]).double()
    torch.testing.assert_close(posteriors.mean(0), training)
    found = estimate_prior(posteriors, training)
    torch.testing.assert_close(found.shares, training, atol=1e-3, rtol=0)
    assert not found.differs
    assert found.kept.all()
    assert (log_prior_shift(found) == 0).all()


@settings(max_examples=20, deadline=None)
@given(problems)
def test_the_order_of_photos_and_classes_does_not_matter(problem):
    posteriors, training = some_posteriors(*problem), some_shares(problem[1], 7)
    generator = torch.Generator().manual_seed(problem[2])
    rows = torch.randperm(problem[0], generator=generator)
    columns = torch.randperm(problem[1], generator=generator)
    one = estimate_prior(posteriors, training, rounds=40)
    other = estimate_prior(posteriors[rows][:, columns], training[columns], rounds=40)
    torch.testing.assert_close(other.shares, one.shares[columns])
    assert other.log_likelihood == pytest.approx(one.log_likelihood)


def test_a_class_never_seen_goes_to_zero_and_is_pruned():
    shares = (0.5, 0.3, 0.2, 0.0, 0.0)
    posteriors, _ = gaussian_posteriors(shares, (0.2,) * 5, photos=200, seed=1, distance=5.0)
    assert float(posteriors[:, 3:].sum()) > 0  # each photo leaves a little for it
    found = estimate_prior(posteriors)
    assert (found.shares[3:] * 200 < LEAST_PHOTOS).all()
    assert found.kept.tolist() == [True, True, True, False, False]
    impossible = torch.tensor([[0.7, 0.3, 0.0], [0.2, 0.8, 0.0]])
    assert estimate_prior(impossible, rounds=1).shares[2] == 0


@pytest.mark.parametrize(("half", "kept"), [(0.49, False), (0.51, True)])
def test_a_class_of_less_than_half_an_expected_photo_is_pruned(half, kept):
    shares = torch.tensor([100 - half, half, 0.0]).double() / 100
    prior = Prior(shares, torch.full((3,), 1 / 3).double(), 100, 90.0)
    assert prior.kept.tolist() == [True, kept, False]
    shift = log_prior_shift(prior)
    assert float(shift[0]) == pytest.approx(math.log(3 * (100 - half) / 100))
    assert float(shift[2]) == pytest.approx(math.log(3 * LEAST_PHOTOS / 100))  # the floor


def test_few_photos_of_many_classes_change_nothing_however_sure_the_answers():
    def sure(photos: int, classes: int) -> Prior:
        posteriors = torch.full((photos, classes), 1e-9)
        posteriors[range(photos), [n % 3 for n in range(photos)]] = 1
        return estimate_prior(posteriors)

    assert not sure(1, 10).differs
    assert not sure(30, 1000).differs
    assert sure(30, 10).differs
    assert sure(300, 1000).kept.sum() == 3
    few = sure(30, 1000)
    logits = torch.randn(2, 1000)
    assert torch.equal(with_prior(logits, few), logits)
    assert few.kept.all()


def test_the_ratio_test_is_the_chi_square_table():
    # 16.919 and 21.666 are the 95 and 99 % points of chi-square with 9 degrees of freedom.
    for twice, expected in ((16.919, 0.05), (21.666, 0.01)):
        prior = Prior(torch.full((10,), 0.1), torch.full((10,), 0.1), 9, twice / 2)
        assert prior.p_value == pytest.approx(expected, rel=1e-3)
    one = estimate_prior(torch.ones(5, 1))
    assert one.p_value == 1
    assert not one.differs


def test_the_ratio_test_hardly_ever_fires_where_the_shares_are_those_of_training():
    fired = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(4, (80,), generator=generator).bincount(minlength=4) / 80
        posteriors, _ = gaussian_posteriors(drawn.tolist(), (0.25,) * 4, photos=80, seed=seed)
        fired += estimate_prior(posteriors).differs
    assert fired <= 4  # 0.6 expected


def known_prior() -> Prior:
    shares = torch.tensor([0.6, 0.0, 0.4, 0.0]).double()
    return Prior(shares, torch.full((4,), 0.25).double(), 50, 40.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_pruned_output_is_never_answered_and_leaves_the_softmax_exact(dtype):
    torch.manual_seed(0)
    prior = known_prior()
    layer = nn.Linear(6, 4)
    mask, bias = output_layer_with_prior(layer.weight, layer.bias, prior)
    assert mask.shape == (1, 4, 6)
    named = nn.ModuleDict({"out": layer})
    inputs = 50 * torch.randn(100, 6)
    plain = layer(inputs).detach()
    with apply_masks(
        [PrunableLayer("out", layer)], {"out": mask}, network=named, values={"out.bias": bias}
    ):
        assert (layer.weight[[1, 3]] == 0).all()
        copy = nn.Linear(6, 4).to(dtype)
        copy.load_state_dict({name: t.to(dtype) for name, t in layer.state_dict().items()})
        logits = copy(inputs.to(dtype)).detach()
    assert (logits[:, [1, 3]] == PRUNED_BIAS).all()
    assert torch.isfinite(logits).all()
    for exact in (torch.float32, torch.float64):
        softmax = logits.to(exact).softmax(1)
        assert torch.equal(softmax[:, [0, 2]], logits[:, [0, 2]].to(exact).softmax(1))
        assert (softmax[:, [1, 3]] == 0).all()
    if dtype == torch.float32:
        expected = (plain.double().softmax(1) * prior.shares / prior.training).float()
        expected = expected / expected.sum(1, keepdim=True)
        torch.testing.assert_close(logits.softmax(1), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(with_prior(plain, prior), logits)
    assert torch.equal(layer(inputs), plain)  # restored


def test_what_is_no_probability_is_refused():
    good = some_posteriors(3, 4, 0)
    for bad in (good * 2, -good, good.log(), good * float("nan")):
        with pytest.raises(PruningError, match="no probabilities"):
            estimate_prior(bad)
    for bad in (good[:0], good[0]):
        with pytest.raises(PruningError, match=r"shape \(photos, classes\)"):
            estimate_prior(bad)
    for training in ([0.5, 0.5, 0.0, 0.0], [0.5, 0.5], [0.5] * 4):
        with pytest.raises(PruningError, match="training share above 0"):
            estimate_prior(good, torch.tensor(training))
    with pytest.raises(PruningError, match="output layer of 4 classes"):
        output_layer_with_prior(torch.ones(5, 6), torch.ones(5), known_prior())
