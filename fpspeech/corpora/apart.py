"""Which utterances adapt and which test: the one place where that is decided for every corpus.

Everything here is a pure function of ids (of utterances, chapters, sessions or prompts), the share
that tests and a seed. The order in which files are found has no part in it. What is drawn is drawn
by SHA-256 of the seed and the id: a number from 0 to 1 that looks random and never changes.

- `split_of_prompt`: where several speakers read the same prompts. A prompt tests where its number
  is below the share. So one prompt is on one side for every speaker, whoever else there is, and
  calibrating on other speakers cannot show anybody's test sentences. The share holds on average.
- `split_groups`: where one speaker's utterances come in chapters, sessions, days or prompts. Whole
  groups test, drawn in the order of their numbers, as many as come nearest to the share. Where
  there are two groups or more, both sides get one.
- `split_in_order`: where all there is, is one chapter or session. The first part adapts and the
  rest tests, in the order of the ids, so that just one pair of neighbours is cut apart. No seed.

At a share of 0 nothing tests, and at 1 nothing adapts.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from itertools import accumulate

from fpspeech.corpora.utterance import Utterance

HASH_BITS = 256


def split_of_prompt(prompt: str, test_share: float, seed: int) -> str:
    """Return "adapt" or "test" for a prompt by itself, the same for whoever reads it.

    Raises ``ValueError`` for a share outside 0 to 1.

    >>> {split_of_prompt("arctic_a0001", 0.5, seed=0) for _ in range(9)}
    {'adapt'}
    """
    _require_share(test_share)
    return "test" if _number(seed, prompt) < test_share else "adapt"


def split_groups(sizes: Mapping[str, int], test_share: float, seed: int) -> dict[str, str]:
    """Return "adapt" or "test" for each group of one speaker; ``sizes`` counts its utterances.

    One group alone adapts where the share is below 1. Raises ``ValueError`` for a share outside
    0 to 1.

    >>> sorted(split_groups({"c1": 10, "c2": 10, "c3": 10}, 1 / 3, seed=0).values())
    ['adapt', 'adapt', 'test']
    """
    _require_share(test_share)
    drawn = sorted(sizes, key=lambda name: (_number(seed, name), name))
    tested = [0, *accumulate(sizes[name] for name in drawn)]  # by how many groups are drawn
    wanted = test_share * tested[-1]
    allowed = _counts_allowed(len(drawn), test_share)
    count = min(allowed, key=lambda count: (abs(tested[count] - wanted), count))
    return {name: "test" if place < count else "adapt" for place, name in enumerate(drawn)}


def split_in_order(ids: Collection[str], test_share: float) -> dict[str, str]:
    """Return "adapt" for the first ids in their sorted order and "test" for the last.

    round(share * n) test (a half rounds up); where there are two or more, both sides get one, and
    one alone adapts where the share is below 1. Raises ``ValueError`` for a share outside 0 to 1.

    >>> split_in_order(["u1", "u2", "u3", "u4"], 0.5)
    {'u1': 'adapt', 'u2': 'adapt', 'u3': 'test', 'u4': 'test'}
    """
    _require_share(test_share)
    allowed = _counts_allowed(len(ids), test_share)
    count = min(max(math.floor(test_share * len(ids) + 0.5), allowed[0]), allowed[-1])
    first = len(ids) - count
    return {each: "adapt" if place < first else "test" for place, each in enumerate(sorted(ids))}


def apart_by_group(
    utterances: Iterable[Utterance],
    group_of: Callable[[Utterance], str],
    test_share: float,
    seed: int,
) -> list[Utterance]:
    """Set the split of every utterance so that no speaker has a group on both sides.

    Speaker by speaker: `split_groups` where a speaker has several groups, and else
    `split_in_order` of the ids.
    """
    by_speaker: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_speaker.setdefault(utterance.speaker, []).append(utterance)
    done = []
    for name in sorted(by_speaker):
        own = by_speaker[name]
        sizes = Counter(group_of(each) for each in own)
        if len(sizes) > 1:
            by_group = split_groups(sizes, test_share, seed)
            done += [replace(each, split=by_group[group_of(each)]) for each in own]
        else:
            by_id = split_in_order({each.id for each in own}, test_share)
            done += [replace(each, split=by_id[each.id]) for each in own]
    return done


def prompt_words(text: str) -> str:
    """Return what makes two texts the same prompt: letters and digits, without case or spacing.

    >>> prompt_words("Don't  ask HER to bring these things.")
    'dont ask her to bring these things'
    """
    kept = "".join(each if each.isalnum() else " " for each in text.casefold() if each not in "'’")
    return " ".join(kept.split())


def _counts_allowed(groups: int, test_share: float) -> range:
    """Return how many may test: both sides get one wherever that is possible and wanted."""
    if test_share == 0:
        return range(1)
    if test_share == 1:
        return range(groups, groups + 1)
    return range(1, groups) if groups > 1 else range(1)


def _require_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"test_share: expected a number from 0 to 1, found {share}")


def _number(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return float(int.from_bytes(digest) / 2**HASH_BITS)
