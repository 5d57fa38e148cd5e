"""Errors to be read, against lines written by hand."""

import pytest

from fpspeech.evaluation import text_normalizer, word_errors
from fpspeech.evaluation.differences import error_report, inline_differences

ENGLISH = text_normalizer("en")


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("the cat sat on", "a cat sat", "[sub: the→a] cat sat [del: on]"),
        ("one light", "one light light", "one light [ins: light]"),
        ("one two", "", "[del: one] [del: two]"),
        ("", "hello", "[ins: hello]"),
        ("same words", "same words", "same words"),
    ],
)
def test_differences_stand_in_line(reference, hypothesis, expected):
    assert inline_differences(reference, hypothesis) == expected


def test_characters_are_compared_where_they_are_the_unit():
    assert inline_differences("猫がいる", "犬がいる", "character") == "[sub: 猫→犬]がいる"


def test_the_error_report_ranks_confusions_and_shows_empty_references():
    references = ["the cat", "the dog", "a cat", "(cough)"]
    heard = ["a cat", "a dog", "a cap", "hello"]
    text = error_report(word_errors(list("abcd"), references, heard, ENGLISH))
    assert "50.0 % of 6 words wrong: 3 substitutions" in text
    assert text.index("     2  the→a") < text.index("     1  cat→cap")
    assert "a (1 S, 0 D, 0 I of 2)\n    [sub: the→a] cat\n" in text
    assert "empty references, left out of the rate: 1" in text
    assert text.endswith("Utterances with an empty reference\n\nd\n    hello\n")
    assert f"{ENGLISH.name} {ENGLISH.version}" in text
