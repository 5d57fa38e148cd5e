"""Stage 4 for speech: tables over results, and the report that says what they are of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fpspeech.corpora import Corpus
from fpspeech.evaluation import TextNormalizer
from fpspeech.output_folder import whole_folder
from fpspeech.results import DENSE, Result
from fpspeech.summaries import (
    Summary,
    summaries_csv,
    summaries_json,
    summaries_markdown,
    summarise,
)

ANOTHER = "another_speaker"
"""The control that measures the personal model of the speaker who comes next."""


@dataclass(frozen=True)
class ReportFacts:
    """What a report says beside its tables. adapted: recordings to adapt on, of all speakers."""

    corpus: Corpus
    model: str
    normalizer: TextNormalizer
    personal_method: str
    adapted: int
    seed: int


def write_report(folder: Path, results: Sequence[Result], facts: ReportFacts) -> None:
    """Writes `report.md`, and all speakers together and each as Markdown, CSV and JSON.

    What was there before is replaced as a whole. Raises ResultsError, see `summarise`.
    """
    lines = summarise(results, seed=facts.seed)
    overall = [line for line in lines if line.speaker is None]
    each = [line for line in lines if line.speaker is not None]
    with whole_folder(folder, overwrite=True) as draft:
        for name, some in (("overall", overall), ("speakers", each)):
            values = json.dumps(summaries_json(some, facts.normalizer), indent=2)
            (draft / f"{name}.json").write_text(values + "\n", encoding="utf-8")
            (draft / f"{name}.md").write_text(summaries_markdown(some), encoding="utf-8")
            table = summaries_csv(some, facts.normalizer)
            (draft / f"{name}.csv").write_text(table, encoding="utf-8")
        text = _text(results, overall, each, facts)
        (draft / "report.md").write_text(text, encoding="utf-8")


def _text(
    results: Sequence[Result],
    overall: Sequence[Summary],
    each: Sequence[Summary],
    facts: ReportFacts,
) -> str:
    corpus, normalizer = facts.corpus, facts.normalizer
    dense = [result for result in results if result.method == DENSE]
    test_minutes = sum(result.facts["test_seconds"] for result in dense) / 60
    seconds = sum(result.facts["wall_seconds"] for result in results)
    left_out = {
        "with an empty reference": sum(r.errors.empty_references for r in dense),
        "without a transcript": sum(r.facts["without_text"] for r in dense),
        "that were adapted on": sum(r.facts["already_heard"] for r in dense),
        "that cannot be read": sum(r.facts["unusable"] for r in dense),
    }
    tested = sum(len(result.errors.utterances) for result in dense)
    compared = overall[0].speakers if overall else 0
    rate = "Word" if normalizer.unit == "word" else "Character"
    return f"""# {corpus.title}: personalized by pruning

- Model: {facts.model}
- Corpus: {corpus.title}, {corpus.licence}{f", {corpus.homepage}" if corpus.homepage else ""}
- Adapt and test apart: {corpus.split}
- {len(dense)} speakers: {facts.adapted} recordings to adapt on without transcripts, {tested} to \
test on ({test_minutes:.1f} minutes)
- Left out of the test: {", ".join(f"{n} {what}" for what, n in left_out.items())}
- Text: {normalizer.name} {normalizer.version}, counted by {normalizer.unit}
- Intervals: 95 % bootstrap over utterances, over speakers first for all together; P(better): \
that the model is better than dense, paired; seed {facts.seed}
- `{facts.personal_method}` makes the personal models; `{ANOTHER}` is the personal model of the \
speaker who comes next
- Transcribing took {seconds:.0f} s in all

{rate} error rates of the {compared} speakers whom every model was measured on:

{summaries_markdown(overall)}
By speaker:

{summaries_markdown(each)}"""
