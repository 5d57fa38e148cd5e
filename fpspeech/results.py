"""What a speech recipe measured, as files: one model on one speaker, every utterance with errors.

A result is a folder: `utterances.jsonl` (what was said and what was heard, normalised, with S, D
and I), `errors.txt` (the differences, to be read) and `result.json` (rates and the normaliser).
It holds transcripts: it belongs in an experiment's folder, never in a personal model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fpspeech.evaluation import (
    Hallucinations,
    TextNormalizer,
    UtteranceErrors,
    WordErrors,
    bootstrap_interval,
)
from fpspeech.evaluation.differences import error_report
from fpspeech.output_folder import whole_folder

UTTERANCES, ERRORS, RESULT = "utterances.jsonl", "errors.txt", "result.json"
DENSE = "dense"


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
