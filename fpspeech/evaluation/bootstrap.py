"""Bootstrap confidence intervals for corpus error rates (Bisani & Ney, ICASSP 2004).

The rate of a corpus is the sum of errors over the sum of words, so what is resampled is the
utterance, with its errors and its words together. Utterances of one speaker are not independent:
where there are several speakers, pass `groups`, and speakers are resampled before utterances.

An error count of 0 or 1 and a word count of 1 make the same functions serve classification.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]
Indices = NDArray[np.int64]

# Utterances drawn at once; bounds the memory to some tens of MB and does not change the result.
DRAWS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Interval:
    """The ends of a confidence interval, in the unit of the statistic (fractions for rates)."""

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """System b against system a on the same utterances.

    `difference` is wer_b - wer_a (negative: b is better), `low` and `high` its interval, and
    `probability_better` the share of resamples where b is better, a tie counting one half.
    """

    difference: float
    low: float
    high: float
    probability_better: float


def bootstrap_interval(
    errors: ArrayLike,
    words: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of the corpus rate sum(errors) / sum(words).

    errors, words: shape = (n_utterances,), words positive. groups: the speaker of each utterance;
    speakers are resampled first, then the utterances inside each drawn speaker. The same seed
    gives the same interval. One utterance gives an interval of no width, and one speaker says
    nothing about other speakers: neither is certainty.

    Raises ValueError for shapes that differ, no utterances, negative errors, utterances without
    words, resamples < 1, or a level outside (0, 1).

    Source: Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR performance
    evaluation", ICASSP 2004.
    """
    counts = _counts({"errors": errors, "words": words})
    e, n = _resampled_sums(counts, groups, resamples, seed)
    return _percentiles(e / n, level)


def paired_comparison(
    errors_a: ArrayLike,
    errors_b: ArrayLike,
    words: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Paired:
    """Compare two systems on the same utterances, with the same resamples for both.

    errors_a, errors_b, words: shape = (n_utterances,). The difference is wer_b - wer_a, and
    `probability_better` is P(difference < 0) + P(difference = 0) / 2 over the resamples, so two
    identical systems have 0.5: the "probability of improvement" of Bisani & Ney 2004, with ties
    shared. The other arguments and the errors raised are those of `bootstrap_interval`.
    """
    counts = _counts({"errors_a": errors_a, "errors_b": errors_b, "words": words})
    total_a, total_b, total = counts.sum(axis=1)
    a, b, n = _resampled_sums(counts, groups, resamples, seed)
    # Subtracted before dividing: sums of counts are exact, so a tie is exactly zero.
    difference = (b - a) / n
    interval = _percentiles(difference, level)
    return Paired(
        difference=float((total_b - total_a) / total),
        low=interval.low,
        high=interval.high,
        probability_better=float(np.mean(difference < 0) + np.mean(difference == 0) / 2),
    )


def _counts(named: dict[str, ArrayLike]) -> Values:
    """Checked counts, shape = (n_counts, n_utterances), the words last."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in named.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) != 1 or arrays["words"].ndim != 1:
        raise ValueError(f"expected shapes (n_utterances,) that agree, found {shapes}")
    if arrays["words"].size == 0:
        raise ValueError("expected at least one utterance, found none")
    for name, array in arrays.items():
        valid = np.isfinite(array) & (array > 0 if name == "words" else array >= 0)
        if not valid.all():
            first = int(np.argmin(valid))
            raise ValueError(
                f"expected {name} to be {'positive' if name == 'words' else 'zero or more'}, "
                f"found {array[first]:g} for utterance {first}; "
                "utterances without reference words have no error rate: leave them out"
            )
    return np.stack(list(arrays.values()))


def _resampled_sums(
    counts: Values, groups: Sequence[Hashable] | None, resamples: int, seed: int
) -> Values:
    """Sums over the utterances of each resample, shape = (n_counts, resamples)."""
    if resamples < 1:
        raise ValueError(f"expected at least 1 resample, found {resamples}")
    members = _members(counts.shape[1], groups)
    ordered = counts[:, np.concatenate(members)]
    sizes = np.array([len(member) for member in members], dtype=np.int64)
    sums = [
        [np.add.reduceat(row[drawn], starts) for row in ordered]
        for drawn, starts in _draws(sizes, resamples, seed)
    ]
    return np.concatenate([np.stack(chunk) for chunk in sums], axis=1)


def _members(utterances: int, groups: Sequence[Hashable] | None) -> list[Indices]:
    """The utterances of each speaker, speakers in the order they first appear."""
    if groups is None:
        return [np.arange(utterances)]
    if len(groups) != utterances:
        raise ValueError(
            f"expected one group for each utterance ({utterances}), found {len(groups)}"
        )
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return [np.array(indices, dtype=np.int64) for indices in members.values()]


def _draws(sizes: Indices, resamples: int, seed: int) -> Iterator[tuple[Indices, Indices]]:
    """Resamples by the chunk: utterances drawn, one resample after another, and their starts.

    sizes: utterances of each speaker, shape = (n_speakers,); utterances are numbered speaker by
    speaker. Speakers and utterances have a random stream each, so that the size of a chunk does
    not matter.
    """
    for_speakers, for_utterances = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2)
    )
    first = np.cumsum(sizes) - sizes
    at_once = max(1, DRAWS_AT_ONCE // int(len(sizes) * sizes.max()))
    for done in range(0, resamples, at_once):
        shape = (min(at_once, resamples - done), len(sizes))
        speakers = for_speakers.integers(0, len(sizes), size=shape)
        inside = sizes[speakers]  # (chunk, n_speakers)
        lengths = inside.sum(axis=1)  # (chunk,)
        size = np.repeat(sizes[speakers.ravel()], inside.ravel())
        drawn = (for_utterances.random(len(size)) * size).astype(np.int64)
        drawn += np.repeat(first[speakers.ravel()], inside.ravel())
        yield drawn, np.cumsum(lengths) - lengths


def _percentiles(values: Values, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, found {level}")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
