"""Tables over what a speech recipe measured: a line a speaker and model, and over all speakers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fpspeech.evaluation import (
    Interval,
    Paired,
    TextNormalizer,
    bootstrap_interval,
    csv_table,
    markdown_table,
    paired_comparison,
    percentage,
    percentage_interval,
)
from fpspeech.evaluation.tables import Cell
from fpspeech.results import DENSE, Result, ResultsError


@dataclass(frozen=True)
class Summary:
    """A line of a table: one model on one speaker, or (speaker None) on all speakers.

    interval: 95 % bootstrap over utterances; over speakers first where there are several.
    against_dense: paired, on the same utterances; None for the dense model itself.
    """

    speaker: str | None
    method: str
    sparsity: float
    reached: float
    speakers: int
    utterances: int
    words: int
    substitutions: int
    deletions: int
    insertions: int
    wer: float
    interval: Interval
    against_dense: Paired | None
    empty_references: int
    words_on_empty_references: int
    repetitive: float
    at_cap: float


def summarise(results: Sequence[Result], *, seed: int = 0) -> list[Summary]:
    """A line for each speaker and model, then one for each model over all speakers.

    Models stand in the order they are given. All are those whom every model was measured on, so
    that the last lines compare; where there is no such speaker, there are no last lines. Raises
    ResultsError where a speaker's models were not measured on the same utterances under one
    normaliser, and where dense is missing.
    """
    normalizers = {result.errors.normalizer for result in results}
    if len(normalizers) > 1:
        names = sorted(f"{each.name} {each.version} ({each.language})" for each in normalizers)
        raise ResultsError(
            f"results under different normalisers do not compare: {'; '.join(names)}; measure "
            "again in a new folder"
        )
    dense = {result.speaker: result for result in results if result.method == DENSE}
    systems: dict[tuple[str, float], list[Result]] = {}
    for result in results:
        if result.speaker not in dense:
            raise ResultsError(f"{result.speaker}: dense was not measured: run stage 1")
        systems.setdefault(result.system, []).append(result)
        if result.errors.utterance_ids != dense[result.speaker].errors.utterance_ids:
            raise ResultsError(
                f"{result.speaker}: {result.method} at {result.sparsity:g} and dense were "
                "measured on different utterances: measure again in a new folder"
            )
    lines = [
        _summary([result], dense, result.speaker, seed)
        for speaker in dict.fromkeys(result.speaker for result in results)
        for result in results
        if result.speaker == speaker
    ]
    complete = {
        speaker
        for speaker in dense
        if all(any(each.speaker == speaker for each in same) for same in systems.values())
    }
    if not complete:
        return lines
    return lines + [
        _summary([each for each in same if each.speaker in complete], dense, None, seed)
        for same in systems.values()
    ]


def _summary(
    same: Sequence[Result], dense: Mapping[str, Result], speaker: str | None, seed: int
) -> Summary:
    counted = [result.errors for result in same]
    errors = np.concatenate([each.utterance_errors for each in counted])
    words = np.concatenate([each.utterance_words for each in counted])
    base = np.concatenate([dense[result.speaker].errors.utterance_errors for result in same])
    groups = [n for n, each in enumerate(counted) for _ in each.utterances]
    outputs = sum(result.signs.outputs for result in same)
    method, sparsity = same[0].system
    return Summary(
        speaker=speaker,
        method=method,
        sparsity=sparsity,
        reached=float(np.mean([result.reached for result in same])),
        speakers=len(same),
        utterances=len(words),
        words=int(words.sum()),
        substitutions=sum(each.substitutions for each in counted),
        deletions=sum(each.deletions for each in counted),
        insertions=sum(each.insertions for each in counted),
        wer=float(errors.sum() / words.sum()),
        interval=bootstrap_interval(errors, words, groups=groups, seed=seed),
        against_dense=(
            None
            if method == DENSE
            else paired_comparison(base, errors, words, groups=groups, seed=seed)
        ),
        empty_references=sum(each.empty_references for each in counted),
        words_on_empty_references=sum(each.words_on_empty_references for each in counted),
        repetitive=sum(r.signs.repetitive * r.signs.outputs for r in same) / max(1, outputs),
        at_cap=sum(r.signs.at_cap * r.signs.outputs for r in same) / max(1, outputs),
    )


def summaries_markdown(lines: Sequence[Summary]) -> str:
    """The lines as a Markdown table; rates in per cent, dense first as the others' measure."""
    headers = ["speaker", "method", "zeros", "WER", "95 % interval", "minus dense"]
    headers += ["95 % interval", "P(better)", "S", "D", "I", "words", "utterances", "empty"]
    rows: list[list[Cell]] = []
    for line in lines:
        paired = line.against_dense
        against: list[Cell] = [None, None, None]
        if paired is not None:
            ends = Interval(paired.low, paired.high)
            against = [
                percentage(paired.difference, signed=True),
                percentage_interval(ends, signed=True),
                f"{paired.probability_better:.2f}",
            ]
        rows.append(
            [
                line.speaker or f"all {line.speakers}",
                line.method,
                f"{line.sparsity:.0%}" if line.sparsity else None,
                percentage(line.wer),
                percentage_interval(line.interval),
                *against,
                line.substitutions,
                line.deletions,
                line.insertions,
                line.words,
                line.utterances,
                line.empty_references,
            ]
        )
    return markdown_table(headers, rows)


def summaries_json(lines: Sequence[Summary], normalizer: TextNormalizer) -> list[dict[str, Any]]:
    """The lines as plain values, each with the normaliser it was measured under."""
    return [{**asdict(line), "normalizer": asdict(normalizer)} for line in lines]


def summaries_csv(lines: Sequence[Summary], normalizer: TextNormalizer) -> str:
    """The lines as comma-separated values at full precision; the speaker of a whole is empty."""
    rows: list[list[Cell]] = []
    headers: list[str] = []
    for line in lines:
        flat = asdict(line)
        interval = flat.pop("interval")
        paired = flat.pop("against_dense") or dict.fromkeys(
            ("difference", "low", "high", "probability_better")
        )
        flat |= {"low": interval["low"], "high": interval["high"]}
        flat |= {f"{name}_to_dense": value for name, value in paired.items()}
        flat["normalizer"] = f"{normalizer.name} {normalizer.version}"
        headers = list(flat)
        rows.append(list(flat.values()))
    return csv_table(headers, rows)
