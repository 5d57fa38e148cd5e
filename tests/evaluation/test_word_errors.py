import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fpspeech.evaluation import WordErrors, text_normalizer, word_errors

# Words that the normalisers leave alone.
SENTENCES = st.lists(st.sampled_from(["cat", "dog", "sun", "tree"]), max_size=6)


def optimal_splits(reference: list[str], hypothesis: list[str]) -> set[tuple[int, int, int]]:
    """Every (S, D, I) of least total, by dynamic programming over prefixes."""
    table: dict[tuple[int, int], set[tuple[int, int, int]]] = {(0, 0): {(0, 0, 0)}}
    for i in range(len(reference) + 1):
        for j in range(len(hypothesis) + 1):
            if (i, j) == (0, 0):
                continue
            options: set[tuple[int, int, int]] = set()
            if i and j:
                wrong = int(reference[i - 1] != hypothesis[j - 1])
                options |= {(s + wrong, d, n) for s, d, n in table[i - 1, j - 1]}
            if i:
                options |= {(s, d + 1, n) for s, d, n in table[i - 1, j]}
            if j:
                options |= {(s, d, n + 1) for s, d, n in table[i, j - 1]}
            least = min(map(sum, options))
            table[i, j] = {split for split in options if sum(split) == least}
    return table[len(reference), len(hypothesis)]


def english(references: list[str], hypotheses: list[str]) -> WordErrors:
    ids = [f"u{index}" for index in range(len(references))]
    return word_errors(ids, references, hypotheses, text_normalizer("en"))


@settings(max_examples=200, deadline=None)
@given(SENTENCES, SENTENCES)
def test_counts_are_an_optimal_alignment(reference: list[str], hypothesis: list[str]) -> None:
    result = english([" ".join(reference)], [" ".join(hypothesis)])
    (counted,) = result.utterances + result.without_reference
    split = (counted.substitutions, counted.deletions, counted.insertions)
    assert split in optimal_splits(reference, hypothesis)
    assert counted.words == len(reference)
    assert counted.hits + counted.substitutions + counted.insertions == len(hypothesis)


@settings(max_examples=100, deadline=None)
@given(st.text("あいうえ", min_size=1, max_size=6), st.text("あいうえ", max_size=6))
def test_character_counts_are_an_optimal_alignment(reference: str, hypothesis: str) -> None:
    result = word_errors(["u"], [reference], [hypothesis], text_normalizer("ja"))
    (counted,) = result.utterances
    split = (counted.substitutions, counted.deletions, counted.insertions)
    assert split in optimal_splits(list(reference), list(hypothesis))
    assert result.words == len(reference)


def test_corpus_rate_is_not_the_mean_of_rates() -> None:
    result = english(["cat", "the big dog ran to the old tree today"], ["dog", "the big dog"])
    assert result.errors == 1 + 6
    assert result.words == 1 + 9
    assert result.wer == pytest.approx(7 / 10)
    rates = result.utterance_errors / result.utterance_words
    assert rates.mean() == pytest.approx((1 + 6 / 9) / 2)


def test_each_kind_of_error_is_counted() -> None:
    result = english(["a cat sat"] * 3, ["a dog sat", "a cat", "a cat sat on"])
    kinds = [(u.substitutions, u.deletions, u.insertions) for u in result.utterances]
    assert kinds == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert (result.substitutions, result.deletions, result.insertions) == (1, 1, 1)
    assert result.hits == 2 + 2 + 3
    assert result.insertion_rate == pytest.approx(1 / 9)


def test_empty_hypothesis_is_all_deletions() -> None:
    result = english(["a cat sat"], [""])
    assert (result.wer, result.deletions, result.words) == (1.0, 3, 3)


def test_insertions_can_take_the_rate_above_one() -> None:
    assert english(["cat"], ["cat dog dog dog"]).wer == 3.0


def test_empty_references_are_set_apart_and_counted() -> None:
    result = english(["a cat", "", "[noise] uh"], ["a cat", "thank you", ""])
    assert result.wer == 0.0
    assert result.insertions == 0
    assert result.utterance_ids == ("u0",)
    assert result.empty_references == 2
    assert result.words_on_empty_references == 2
    assert [utterance.id for utterance in result.without_reference] == ["u1", "u2"]


def test_words_on_empty_references_are_characters_where_the_unit_is() -> None:
    result = word_errors(["u"], ["。"], ["你好"], text_normalizer("zh"))
    assert result.words_on_empty_references == 2


@pytest.mark.parametrize("references", [[], ["", "uh"]])
def test_without_reference_words_the_rate_is_nan(references: list[str]) -> None:
    result = english(references, ["hello"] * len(references))
    assert math.isnan(result.wer)
    assert math.isnan(result.insertion_rate)
    assert result.empty_references == len(references)
    assert result.utterance_errors.shape == (0,)


def test_normalisation_comes_before_counting() -> None:
    assert english(["MISTER SMITH WON'T PAY TWENTY"], ["Mr. Smith will  not pay 20."]).wer == 0.0
    raw = ["Mister Smith"]
    german = word_errors(["u"], raw, ["mr smith"], text_normalizer("de"))
    assert german.substitutions == 1


def test_spaces_are_not_errors_in_character_languages() -> None:
    result = word_errors(["u"], ["你好，世界"], ["你好 世 男"], text_normalizer("zh"))
    assert (result.substitutions, result.errors, result.words) == (1, 1, 4)


def test_arrays_are_in_the_order_of_the_utterances() -> None:
    result = english(["cat", "", "dog tree"], ["dog", "", "dog tree"])
    np.testing.assert_array_equal(result.utterance_errors, [1, 0])
    np.testing.assert_array_equal(result.utterance_words, [1, 2])
    assert result.utterance_ids == ("u0", "u2")


def test_a_result_stores_its_normaliser() -> None:
    stored = asdict(english(["cat"], ["cat"]))
    assert stored["normalizer"] == asdict(text_normalizer("en"))


def test_different_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 ids, 1 references and 2 hypotheses"):
        word_errors(["a", "b"], ["x"], ["x", "y"], text_normalizer())


def test_repeated_ids_are_an_error() -> None:
    with pytest.raises(ValueError, match="1 repeated ids, the first is 'a'"):
        word_errors(["a", "a"], ["x", "y"], ["x", "y"], text_normalizer())
