"""Errors to be read: where a transcript differs from what was said, and what is confused most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import jiwer

from fpspeech.evaluation.tables import percentage
from fpspeech.evaluation.text import Unit
from fpspeech.evaluation.wer import WordErrors

MOST_CONFUSED = 20
"""Words in each list of the most frequent errors."""


def inline_differences(reference: str, hypothesis: str, unit: Unit = "word") -> str:
    """One line with what was heard otherwise: "the [sub: cat→mat] sat [del: on] [ins: uh]".

    Where the unit is "character", single characters are compared and nothing stands between.
    """
    return (" " if unit == "word" else "").join(
        right if kind == "hit" else _bracket(kind, right, heard)
        for kind, right, heard in _differences(reference, hypothesis, unit)
    )


def error_report(errors: WordErrors) -> str:
    """The errors to be read: counts, the most confused words, then every wrong utterance."""
    unit = errors.normalizer.unit
    kinds: dict[str, Counter[str]] = {"sub": Counter(), "del": Counter(), "ins": Counter()}
    wrong = []
    for each in errors.utterances:
        for kind, right, heard in _differences(each.reference, each.hypothesis, unit):
            if kind != "hit":
                kinds[kind][_pair(kind, right, heard)] += 1
        if each.errors:
            counts = f"{each.substitutions} S, {each.deletions} D, {each.insertions} I"
            difference = inline_differences(each.reference, each.hypothesis, unit)
            wrong.append(f"{each.id} ({counts} of {each.words})\n    {difference}\n")
    normalizer = errors.normalizer
    lines = [
        f"{percentage(errors.wer)} of {errors.words} {unit}s wrong: {errors.substitutions} "
        f"substitutions, {errors.deletions} deletions, {errors.insertions} insertions in "
        f"{len(errors.utterances)} utterances\n",
        f"text: {normalizer.name} {normalizer.version}, counted by {unit}\n",
        f"empty references, left out of the rate: {errors.empty_references}\n",
    ]
    for kind, title in (("sub", "heard as another"), ("del", "not heard"), ("ins", "made up")):
        ranked = sorted(kinds[kind].items(), key=lambda item: (-item[1], item[0]))
        lines.append(f"\nMost often {title}\n\n")
        lines += [f"{count:6d}  {words}\n" for words, count in ranked[:MOST_CONFUSED]]
        lines += [] if ranked else ["  none\n"]
    lines += ["\nUtterances with errors\n\n", *(wrong or ["  none\n"])]
    if errors.without_reference:
        lines.append("\nUtterances with an empty reference\n\n")
        lines += [f"{each.id}\n    {each.hypothesis}\n" for each in errors.without_reference]
    return "".join(lines)


def _differences(reference: str, hypothesis: str, unit: Unit) -> Iterator[tuple[str, str, str]]:
    """(kind, word of the reference, word heard) along one optimal alignment."""
    output: jiwer.WordOutput | jiwer.CharacterOutput
    if unit == "character":
        output = jiwer.process_characters(reference, hypothesis)
    else:
        output = jiwer.process_words(reference, hypothesis)
    right, heard = output.references[0], output.hypotheses[0]
    kinds = {"equal": "hit", "substitute": "sub", "delete": "del", "insert": "ins"}
    for chunk in output.alignments[0]:
        before = right[chunk.ref_start_idx : chunk.ref_end_idx]
        after = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for n in range(max(len(before), len(after))):
            yield kinds[chunk.type], _at(before, n), _at(after, n)


def _at(words: Sequence[str], n: int) -> str:
    return words[n] if n < len(words) else ""


def _pair(kind: str, right: str, heard: str) -> str:
    return {"sub": f"{right}→{heard}", "del": right, "ins": heard}[kind]


def _bracket(kind: str, right: str, heard: str) -> str:
    return f"[{kind}: {_pair(kind, right, heard)}]"
