"""Signs that a recogniser makes text up: insertions, repetition, outputs that do not end."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from fpspeech.evaluation.wer import WordErrors

REPETITIVE = 2.4
"""Compression ratio over which openai/whisper takes an output for a loop."""

PIECE_CHARACTERS = 1000
"""Characters whose ratio is taken at once: what at most fits into a window of 30 seconds.

Ordinary text compresses the better the longer it is, beyond 2.4 in a transcript of many windows.
"""


@dataclass(frozen=True)
class Hallucinations:
    """Signs of made-up text in a set of outputs.

    insertion_rate: inserted words over reference words, a fraction; nan without reference words.
    repetitive: share of the outputs that repeat themselves. at_cap: share of the outputs that
    were cut at the cap on new tokens. outputs: how many there are; the shares are 0 without any.
    """

    insertion_rate: float
    repetitive: float
    at_cap: float
    outputs: int


def hallucinations(
    errors: WordErrors, texts: Sequence[str], at_cap: Sequence[int]
) -> Hallucinations:
    """Counts the signs in outputs as the model wrote them, one a recording.

    errors: of the same outputs. texts: not normalised. at_cap: for each output, the windows that
    were cut (`Transcript.at_cap`). Raises ValueError where the lengths differ.
    """
    if len(texts) != len(at_cap):
        raise ValueError(
            f"expected a number of cut windows for each output, found {len(texts)} outputs and "
            f"{len(at_cap)} numbers"
        )
    outputs = max(1, len(texts))
    return Hallucinations(
        insertion_rate=errors.insertion_rate,
        repetitive=sum(map(is_repetitive, texts)) / outputs,
        at_cap=sum(count > 0 for count in at_cap) / outputs,
        outputs=len(texts),
    )


def is_repetitive(text: str) -> bool:
    """Says whether some piece of `PIECE_CHARACTERS` has a compression ratio over `REPETITIVE`."""
    starts = range(0, len(text), PIECE_CHARACTERS)
    return any(
        compression_ratio(text[start : start + PIECE_CHARACTERS]) > REPETITIVE for start in starts
    )


def compression_ratio(text: str) -> float:
    """UTF-8 bytes of a text over its bytes under zlib, as in openai/whisper; empty text has 0."""
    written = text.encode("utf-8")
    return len(written) / len(zlib.compress(written))
