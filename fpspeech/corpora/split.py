"""Setting utterances or photos aside for testing, by their ids alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from math import floor
from typing import Protocol, TypeVar


class Identified(Protocol):
    """Something with an id of its own, such as an utterance or a photo."""

    @property
    def id(self) -> str:
        """The id."""


Item = TypeVar("Item", bound=Identified)


def hold_out(utterances: Iterable[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Split utterances into (kept, held out), a pure function of their ids and the seed.

    Exactly floor(share * n) are held out: those whose SHA-256 of seed and id sorts first. So the
    order of the input does not matter, and a larger share holds out the same ones and more. Both
    lists are sorted by id. Raises ``ValueError`` for a share outside 0 to 1 and for an id that
    occurs twice.

    >>> from pathlib import Path
    >>> from fpspeech.corpora import Utterance
    >>> five = [Utterance(f"u{i}", Path(f"u{i}.wav"), "ann") for i in range(5)]
    >>> kept, held_out = hold_out(five, share=0.4, seed=0)
    >>> len(kept), len(held_out)
    (3, 2)
    >>> hold_out(reversed(five), share=0.4, seed=0) == (kept, held_out)
    True
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected a number from 0 to 1, found {share}")
    chosen = sorted(utterances, key=lambda utterance: utterance.id)
    for one, other in pairwise(chosen):
        if one.id == other.id:
            raise ValueError(f"expected ids that differ, found {one.id!r} twice; rename one")
    # 0.29 * 100 is 28.999... in binary; the decimal that was written is what is meant.
    count = floor(Fraction(str(share)) * len(chosen))
    by_hash = sorted(chosen, key=lambda utterance: _hash(seed, utterance.id))
    held = {utterance.id for utterance in by_hash[:count]}
    return (
        [utterance for utterance in chosen if utterance.id not in held],
        [utterance for utterance in chosen if utterance.id in held],
    )


def _hash(seed: int, identity: str) -> bytes:
    return hashlib.sha256(f"{seed} {identity}".encode()).digest()
