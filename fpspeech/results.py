"""What a recipe measured, as files: every utterance, its errors, and tables over speakers.

A result is a folder: `utterances.jsonl` (what was said and what was heard, normalised, with S, D
and I), `errors.txt` (the differences, to be read) and `result.json` (rates and the normaliser).
It holds transcripts: it belongs in an experiment's folder, never in a personal model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from fpspeech.evaluation import (
    Hallucinations,
    Interval,
    Paired,
    TextNormalizer,
    UtteranceErrors,
    WordErrors,
    bootstrap_interval,
    csv_table,
    markdown_table,
    paired_comparison,
    percentage,
    percentage_interval,
)
from fpspeech.evaluation.tables import Cell
from fpspeech.evaluation.text import Unit
from fpspeech.output_folder import whole_folder

UTTERANCES, ERRORS, RESULT = "utterances.jsonl", "errors.txt", "result.json"
DENSE = "dense"
MOST_CONFUSED = 20


class ResultsError(ValueError):
    """Results that cannot be read, or do not belong together; names the file and the remedy."""


@dataclass(frozen=True)
class Result:
    """One model measured on one speaker.

    method: "dense", a method, or a control. sparsity: as asked; reached: among the prunable
    weights. facts: what else is worth keeping, plain JSON values.
    """

    speaker: str
    method: str
    sparsity: float
    reached: float
    errors: WordErrors
    signs: Hallucinations
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def system(self) -> tuple[str, float]:
        """What was measured, whoever spoke."""
        return self.method, self.sparsity


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


def write_result(folder: Path, result: Result, *, seed: int = 0) -> None:
    """Writes a result's folder, whole or not at all; what was there before is replaced."""
    errors = result.errors
    interval = bootstrap_interval(errors.utterance_errors, errors.utterance_words, seed=seed)
    value = {
        "speaker": result.speaker,
        "method": result.method,
        "sparsity": result.sparsity,
        "sparsity_reached": result.reached,
        "wer": errors.wer,
        "interval": [interval.low, interval.high],
        "words": errors.words,
        "substitutions": errors.substitutions,
        "deletions": errors.deletions,
        "insertions": errors.insertions,
        "utterances": len(errors.utterances),
        "empty_references": errors.empty_references,
        "words_on_empty_references": errors.words_on_empty_references,
        "normalizer": asdict(errors.normalizer),
        "signs": asdict(result.signs),
        "facts": dict(result.facts),
    }
    with whole_folder(folder, overwrite=True) as draft:
        lines = [json.dumps(_row(each), ensure_ascii=False) + "\n" for each in _all(errors)]
        (draft / UTTERANCES).write_text("".join(lines), encoding="utf-8")
        (draft / ERRORS).write_text(error_report(errors), encoding="utf-8")
        content = json.dumps(value, indent=2, ensure_ascii=False)
        (draft / RESULT).write_text(content + "\n", encoding="utf-8")


def read_result(folder: Path) -> Result:
    """Reads a result's folder; raises ResultsError, naming the file, when it cannot."""
    path = folder / RESULT
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        normalizer = TextNormalizer(**value["normalizer"])
        path = folder / UTTERANCES
        # Not splitlines: JSON allows other line separators (U+2028) inside a string.
        lines = path.read_text(encoding="utf-8").split("\n")
        counted = [_utterance(json.loads(line)) for line in lines if line]
        path = folder / RESULT
        return Result(
            speaker=value["speaker"],
            method=value["method"],
            sparsity=value["sparsity"],
            reached=value["sparsity_reached"],
            errors=WordErrors(
                tuple(each for each in counted if each.words),
                tuple(each for each in counted if not each.words),
                normalizer,
            ),
            signs=Hallucinations(**value["signs"]),
            facts=value["facts"],
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ResultsError(
            f"{path} cannot be read ({type(error).__name__}: {error}): remove {folder} and run "
            "the stage again"
        ) from error


def _all(errors: WordErrors) -> tuple[UtteranceErrors, ...]:
    return (*errors.utterances, *errors.without_reference)


def _row(utterance: UtteranceErrors) -> dict[str, str | int]:
    return {
        "id": utterance.id,
        "reference": utterance.reference,
        "hypothesis": utterance.hypothesis,
        "words": utterance.words,
        "S": utterance.substitutions,
        "D": utterance.deletions,
        "I": utterance.insertions,
    }


def _utterance(row: Mapping[str, Any]) -> UtteranceErrors:
    return UtteranceErrors(
        id=row["id"],
        reference=row["reference"],
        hypothesis=row["hypothesis"],
        hits=row["words"] - row["S"] - row["D"],
        substitutions=row["S"],
        deletions=row["D"],
        insertions=row["I"],
    )


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
