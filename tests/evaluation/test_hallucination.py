"""Hallucination counters: repetition, outputs at the cap, insertions."""

import math
import random
import zlib
from string import ascii_lowercase

import pytest

from fpspeech.evaluation import text_normalizer, word_errors
from fpspeech.evaluation.hallucination import (
    REPETITIVE,
    compression_ratio,
    hallucinations,
    is_repetitive,
)

SENTENCE = "the fourth officer asked whether anyone had seen the small boat leave the harbour"
LOOP = SENTENCE + " and then" + " thank you" * 60


def errors_of(references, hypotheses):
    ids = [str(index) for index in range(len(references))]
    return word_errors(ids, references, hypotheses, text_normalizer("en"))


def test_the_compression_ratio_is_that_of_openai_whisper():
    text = "na " * 50 + "é"
    assert compression_ratio(text) == len(text.encode()) / len(zlib.compress(text.encode()))
    assert compression_ratio("") == 0


@pytest.mark.parametrize("loop", ["ly" * 200, "thank you " * 40, LOOP, SENTENCE * 8])
def test_a_loop_is_repetitive(loop):
    assert is_repetitive(loop)


@pytest.mark.parametrize("text", ["", "yes", "no no no", SENTENCE])
def test_speech_is_not_repetitive(text):
    assert not is_repetitive(text)


def test_a_long_transcript_is_not_repetitive_for_its_length_but_for_a_loop_in_it():
    chance = random.Random(0)
    words = ["".join(chance.choices(ascii_lowercase, k=6)) for _ in range(200)]
    prose = " ".join(chance.choices(words, k=5000))
    assert compression_ratio(prose) > REPETITIVE
    assert not is_repetitive(prose)
    middle = len(prose) // 2
    assert is_repetitive(prose[:middle] + " thank you" * 90 + prose[middle:])


def test_shares_are_of_the_outputs_given():
    references = [SENTENCE, "thank you", "good morning", "yes"]
    heard = [SENTENCE, "thank you" * 60, "good morning to you", "yes"]
    signs = hallucinations(errors_of(references, heard), heard, [0, 2, 0, 0])
    assert signs.repetitive == 0.25
    assert signs.at_cap == 0.25
    assert signs.outputs == 4
    assert signs.insertion_rate == errors_of(references, heard).insertion_rate > 0


def test_no_outputs_have_no_shares():
    signs = hallucinations(errors_of([], []), [], [])
    assert (signs.repetitive, signs.at_cap, signs.outputs) == (0, 0, 0)
    assert math.isnan(signs.insertion_rate)


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="2 outputs and 1 numbers"):
        hallucinations(errors_of(["a"], ["a"]), ["a", "b"], [0])
