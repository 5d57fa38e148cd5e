import doctest
from math import floor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fpspeech.corpora import Utterance, hold_out, split


def utterances(ids):
    return [Utterance(each, Path(f"{each}.wav"), "ann") for each in ids]


ids = st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=30)
percents = st.integers(0, 100)
quick = settings(max_examples=50, deadline=None)


def test_the_example_runs():
    assert doctest.testmod(split).failed == 0


@quick
@given(ids, percents, st.integers())
def test_parts_are_disjoint_whole_sorted_and_of_exact_size(names, percent, seed):
    kept, held_out = hold_out(utterances(names), percent / 100, seed)
    assert len(held_out) == percent * len(names) // 100
    assert sorted(each.id for each in kept + held_out) == sorted(names)
    for part in (kept, held_out):
        assert [each.id for each in part] == sorted(each.id for each in part)


@quick
@given(ids, percents, st.integers(), st.randoms())
def test_the_order_of_the_input_does_not_matter(names, percent, seed, random):
    shuffled = list(names)
    random.shuffle(shuffled)
    share = percent / 100
    assert hold_out(utterances(names), share, seed) == hold_out(utterances(shuffled), share, seed)


@quick
@given(ids, percents, percents, st.integers())
def test_a_larger_share_holds_out_the_same_and_more(names, one, other, seed):
    low, high = sorted((one, other))
    fewer = hold_out(utterances(names), low / 100, seed)[1]
    more = hold_out(utterances(names), high / 100, seed)[1]
    assert {each.id for each in fewer} <= {each.id for each in more}


def test_seeds_differ_and_every_utterance_has_its_turn():
    hundred = utterances(f"u{i:03}" for i in range(100))
    held = [{each.id for each in hold_out(hundred, 0.29, seed)[1]} for seed in range(60)]
    assert held[0] != held[1]
    assert all(len(each) == 29 == floor(29) for each in held)
    assert set.union(*held) == {each.id for each in hundred}


def test_refuses_a_share_outside_0_to_1_and_repeated_ids():
    with pytest.raises(ValueError, match=r"share: expected .* found 1.5"):
        hold_out([], 1.5, 0)
    with pytest.raises(ValueError, match="'a' twice"):
        hold_out(utterances(["a", "b", "a"]), 0.5, 0)
