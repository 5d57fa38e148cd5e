from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from fpspeech.evaluation import Interval, bootstrap, bootstrap_interval, paired_comparison

Array = NDArray[np.int64]


def corpus(utterances: int = 40, seed: int = 3) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 20, utterances)
    return rng.binomial(words, 0.2), words


def slow_rates(
    errors: Array, words: Array, groups: Sequence[str], resamples: int, seed: int
) -> list[float]:
    """The definition, one resample after another, with the two random streams of the module."""
    speakers = list(dict.fromkeys(groups))
    streams = np.random.SeedSequence(seed).spawn(2)
    for_speakers, for_utterances = map(np.random.default_rng, streams)
    rates = []
    for _ in range(resamples):
        total_errors = total_words = 0
        for drawn in for_speakers.integers(0, len(speakers), size=len(speakers)):
            own = [i for i, group in enumerate(groups) if group == speakers[drawn]]
            for _ in own:
                i = own[int(for_utterances.random() * len(own))]
                total_errors += int(errors[i])
                total_words += int(words[i])
        rates.append(total_errors / total_words)
    return rates


@pytest.mark.parametrize("speakers", [None, ["a"] * 12, ["b", "a", "b", "c", "c", "b"] * 2])
def test_interval_is_that_of_a_slow_loop(speakers: list[str] | None) -> None:
    errors, words = corpus(12)
    rates = slow_rates(errors, words, speakers or ["all"] * 12, 200, seed=5)
    found = bootstrap_interval(errors, words, groups=speakers, resamples=200, seed=5, level=0.9)
    low, high = np.quantile(rates, [0.05, 0.95])
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_interval_is_the_analytic_one_for_equal_lengths() -> None:
    # One word each: the rate of a resample is binomial(n, p) / n.
    errors = np.array([1] * 300 + [0] * 700)
    found = bootstrap_interval(errors, np.ones(1000))
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert (found.low, found.high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.002)


@pytest.mark.parametrize("groups", [None, ["a", "b"] * 20])
def test_chunks_do_not_change_the_result(
    monkeypatch: pytest.MonkeyPatch, groups: list[str] | None
) -> None:
    errors, words = corpus()
    whole = bootstrap_interval(errors, words, groups=groups, resamples=500)
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 130)
    assert bootstrap_interval(errors, words, groups=groups, resamples=500) == whole


def test_same_seed_same_interval() -> None:
    errors, words = corpus()
    assert bootstrap_interval(errors, words, seed=7) == bootstrap_interval(errors, words, seed=7)
    assert bootstrap_interval(errors, words, seed=7) != bootstrap_interval(errors, words, seed=8)


def test_interval_holds_the_rate_and_widens_with_the_level() -> None:
    errors, words = corpus()
    narrow = bootstrap_interval(errors, words, level=0.5)
    wide = bootstrap_interval(errors, words, level=0.99)
    assert wide.low < narrow.low < errors.sum() / words.sum() < narrow.high < wide.high


def test_without_variation_the_interval_has_no_width() -> None:
    assert bootstrap_interval([1, 2, 3], [2, 4, 6]) == Interval(0.5, 0.5)


def test_speakers_that_differ_widen_the_interval() -> None:
    # Speaker "a" always errs, speaker "b" never: few speakers, many utterances.
    errors = np.array([5] * 100 + [0] * 100)
    words = np.full(200, 10)
    flat = bootstrap_interval(errors, words, resamples=2000)
    grouped = bootstrap_interval(errors, words, groups=["a"] * 100 + ["b"] * 100, resamples=2000)
    assert grouped == Interval(0.0, 0.5)
    assert grouped.high - grouped.low > 5 * (flat.high - flat.low)


def test_identical_systems_have_no_difference() -> None:
    errors, words = corpus()
    found = paired_comparison(errors, errors, words)
    assert (found.difference, found.low, found.high) == (0, 0, 0)
    assert found.probability_better == 0.5


def test_fewer_errors_everywhere_is_surely_better() -> None:
    words = np.full(30, 10)
    found = paired_comparison(np.full(30, 3), np.full(30, 2), words)
    assert found.difference == pytest.approx(-0.1)
    assert found.high < 0
    assert found.probability_better == 1.0
    assert paired_comparison(np.full(30, 2), np.full(30, 3), words).probability_better == 0.0


def test_swapping_the_systems_swaps_the_comparison() -> None:
    errors, words = corpus()
    other = np.minimum(words, errors + np.tile([0, 1, -1, 0], 10).clip(-errors))
    ab = paired_comparison(errors, other, words)
    ba = paired_comparison(other, errors, words)
    assert ab.difference == -ba.difference
    assert (ab.low, ab.high) == pytest.approx((-ba.high, -ba.low))
    assert ab.probability_better == pytest.approx(1 - ba.probability_better)


def test_pairing_sees_what_separate_intervals_hide() -> None:
    # The same errors and one fewer in every third utterance.
    errors, words = corpus(120)
    better = errors - ((np.arange(120) % 3 == 0) & (errors > 0))
    a, b = bootstrap_interval(errors, words), bootstrap_interval(better, words)
    assert a.low < b.high
    assert paired_comparison(errors, better, words).high < 0


def test_ties_count_half() -> None:
    # b is better in one utterance of two: a resample of two misses it with probability 1/4.
    found = paired_comparison([1, 1], [0, 1], [1, 1], resamples=20_000)
    assert found.probability_better == pytest.approx(0.75 + 0.25 / 2, abs=0.01)


def test_paired_comparison_resamples_speakers_too() -> None:
    errors, words = np.full(40, 2), np.full(40, 4)
    other = np.array([1] * 20 + [3] * 20)
    groups = ["a"] * 20 + ["b"] * 20
    found = paired_comparison(errors, other, words, groups=groups)
    assert (found.difference, found.low, found.high) == (0, -0.25, 0.25)


@pytest.mark.parametrize(
    ("errors", "words", "message"),
    [
        ([1, 2], [3], "agree"),
        ([[1]], [[2]], "agree"),
        ([], [], "at least one utterance"),
        ([1, 0], [4, 0], "words to be positive, found 0 for utterance 1"),
        ([-1], [4], "errors to be zero or more"),
        ([float("nan")], [4], "errors to be zero or more"),
    ],
)
def test_wrong_counts_are_an_error(errors: list[int], words: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(errors, words)


def test_wrong_options_are_an_error() -> None:
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1], [2], level=95)
    with pytest.raises(ValueError, match="resample"):
        bootstrap_interval([1], [2], resamples=0)
    with pytest.raises(ValueError, match="one group for each utterance"):
        bootstrap_interval([1, 1], [2, 2], groups=["a"])
