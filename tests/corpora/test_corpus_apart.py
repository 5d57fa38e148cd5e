import doctest
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fpspeech.corpora import Utterance, apart
from fpspeech.corpora.apart import (
    apart_by_group,
    prompt_words,
    split_groups,
    split_in_order,
    split_of_prompt,
)

quick = settings(max_examples=60, deadline=None)
names = st.text(min_size=1, max_size=4)
inner_shares = st.integers(1, 99).map(lambda percent: percent / 100)


def utterance(identity: str, speaker: str = "ann") -> Utterance:
    return Utterance(identity, Path(f"{identity}.wav"), speaker)


def test_the_examples_run():
    assert doctest.testmod(apart).failed == 0


def test_the_draw_never_changes():
    """These are in published manifests: a change of them changes every split."""
    splits = {f"arctic_a{n:04d}": split_of_prompt(f"arctic_a{n:04d}", 0.5, 0) for n in range(1, 9)}
    assert "".join(split[0] for split in splits.values()) == "atttttat"
    assert split_groups({"84-121123": 30, "84-121550": 40}, 0.5, 0) == {
        "84-121123": "test",
        "84-121550": "adapt",
    }


@quick
@given(names, st.integers(), inner_shares, inner_shares)
def test_a_prompt_that_tests_still_does_at_a_larger_share(prompt, seed, one, other):
    low, high = sorted((one, other))
    if split_of_prompt(prompt, low, seed) == "test":
        assert split_of_prompt(prompt, high, seed) == "test"
    assert split_of_prompt(prompt, 0, seed) == "adapt"
    assert split_of_prompt(prompt, 1, seed) == "test"


def test_the_share_of_prompts_holds_on_average_and_seeds_differ():
    prompts = [f"arctic_a{n:04d}" for n in range(1000)]
    tested = [
        {each for each in prompts if split_of_prompt(each, 0.3, seed) == "test"}
        for seed in range(3)
    ]
    assert all(250 < len(each) < 350 for each in tested)
    assert tested[0] != tested[1] != tested[2]


@quick
@given(st.dictionaries(names, st.integers(1, 50), max_size=8), inner_shares, st.integers(0, 9))
def test_groups_are_whole_both_sides_get_one_and_the_share_is_the_nearest(sizes, share, seed):
    split = split_groups(sizes, share, seed)
    assert split.keys() == sizes.keys()
    assert set(split_groups(dict(reversed(sizes.items())), share, seed).items()) == set(
        split.items()
    )
    if len(sizes) > 1:
        assert set(split.values()) == {"adapt", "test"}
    elif sizes:
        assert set(split.values()) == {"adapt"}
    # No other number of groups, drawn in the same order, comes nearer.
    order = sorted(sizes, key=lambda name: (apart._number(seed, name), name))
    tested = sum(sizes[name] for name in sizes if split[name] == "test")
    for count in range(1, len(order)):
        other = sum(sizes[name] for name in order[:count])
        wanted = share * sum(sizes.values())
        assert abs(tested - wanted) <= abs(other - wanted)


@quick
@given(st.sets(names, max_size=30), inner_shares)
def test_in_order_cuts_once(ids, share):
    split = split_in_order(ids, share)
    sides = [split[each] for each in sorted(ids)]
    assert sides == sorted(sides)
    if len(ids) > 1:
        assert abs(sides.count("test") - share * len(ids)) < 1
        assert set(sides) == {"adapt", "test"}


def test_a_share_of_nothing_and_of_everything():
    assert set(split_groups({"a": 1, "b": 2}, 0, 0).values()) == {"adapt"}
    assert set(split_groups({"a": 1, "b": 2}, 1, 0).values()) == {"test"}
    assert split_in_order(["a"], 1) == {"a": "test"}
    assert split_groups({}, 0.5, 0) == split_in_order([], 0.5) == {}
    for share in (-0.1, 1.1, float("nan")):
        for call in (
            lambda share: split_of_prompt("a", share, 0),
            lambda share: split_groups({"a": 1}, share, 0),
            lambda share: split_in_order(["a"], share),
        ):
            with pytest.raises(ValueError, match="test_share"):
                call(share)


@quick
@given(st.randoms())
def test_speakers_are_split_alone_and_file_order_has_no_part(random):
    found = [utterance(f"ann-c{n % 3}-{n}") for n in range(12)]
    found += [utterance(f"ben-only-{n:02}", "ben") for n in range(10)]
    shuffled = list(found)
    random.shuffle(shuffled)

    def split(given):
        done = apart_by_group(given, lambda each: each.id.rsplit("-", 1)[0], 0.5, seed=1)
        return {each.id: each.split for each in done}

    sides = split(found)
    assert sides == split(shuffled)
    assert sides | split(found[:12]) == sides
    groups: dict[str, set[str]] = {}
    for identity, side in sides.items():
        groups.setdefault(identity.rsplit("-", 1)[0], set()).add(side)
    assert all(len(groups[f"ann-c{n}"]) == 1 for n in range(3))
    assert Counter(side for identity, side in sides.items() if "ben" in identity) == {
        "adapt": 5,
        "test": 5,
    }


def test_what_makes_two_texts_one_prompt():
    assert prompt_words("It’s  TIME,\tsaid he.") == prompt_words("its time said he")
    assert prompt_words("Straße") == prompt_words("STRASSE")
    assert prompt_words("“…” –") == ""
    assert prompt_words("Nein") != prompt_words("Nine")
