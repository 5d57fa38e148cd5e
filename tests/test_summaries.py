"""Tables over results, against counts made by hand, and results that do not belong together."""

import csv
import io
import json

import pytest

from fpspeech.evaluation import Hallucinations, text_normalizer, word_errors
from fpspeech.results import Result, ResultsError
from fpspeech.summaries import (
    summaries_csv,
    summaries_json,
    summaries_markdown,
    summarise,
)

ENGLISH = text_normalizer("en")
REFERENCES = ["THE CAT SAT ON", "ONE LIGHT", "(COUGH)"]
DENSE = ["the cat sat on", "one night", "uh oh"]  # uh is a filler to the normaliser
PRUNED = ["a cat sat", "one light light", ""]


def result(hypotheses, speaker="ann", method="dense", sparsity=0.0, language="en", **facts):
    ids = [f"{speaker}-{n}" for n in range(len(hypotheses))]
    errors = word_errors(ids, REFERENCES[: len(ids)], hypotheses, text_normalizer(language))
    signs = Hallucinations(errors.insertion_rate, 0.0, 0.5, len(ids))
    return Result(speaker, method, sparsity, sparsity, errors, signs, facts)


def test_tables_by_speaker_and_over_all():
    results = [
        result(DENSE),
        result(PRUNED, method="wanda", sparsity=0.5),
        result(DENSE[:2], speaker="ben"),
        result(["the cat sat on", "one light"], speaker="ben", method="wanda", sparsity=0.5),
    ]
    lines = summarise(results)
    assert [(line.speaker, line.method) for line in lines] == [
        ("ann", "dense"),
        ("ann", "wanda"),
        ("ben", "dense"),
        ("ben", "wanda"),
        (None, "dense"),
        (None, "wanda"),
    ]
    dense, wanda = lines[-2:]
    assert (dense.wer, dense.words, dense.speakers, dense.empty_references) == (2 / 12, 12, 2, 1)
    assert dense.against_dense is None
    assert (wanda.substitutions, wanda.deletions, wanda.insertions) == (1, 1, 1)
    assert wanda.against_dense.difference == pytest.approx(1 / 12)
    assert wanda.interval.low <= wanda.wer <= wanda.interval.high
    ben = lines[3]
    assert ben.against_dense.probability_better > 0.5
    assert ben.wer == 0

    table = summaries_markdown(lines[-2:])
    assert "| all 2 | dense | – | 16.7 % |" in table
    assert "| all 2 | wanda | 50% | 25.0 % |" in table
    assert "+8.3 %" in table
    rows = list(csv.DictReader(io.StringIO(summaries_csv(lines, ENGLISH))))
    assert [row["speaker"] for row in rows] == ["ann", "ann", "ben", "ben", "", ""]
    assert float(rows[-1]["wer"]) == 3 / 12
    assert float(rows[-1]["difference_to_dense"]) == pytest.approx(1 / 12)
    assert rows[-2]["probability_better_to_dense"] == ""
    assert ENGLISH.version in rows[0]["normalizer"]
    values = json.loads(json.dumps(summaries_json(lines, ENGLISH)))
    assert values[-1]["against_dense"]["difference"] == pytest.approx(1 / 12)
    assert values[0]["normalizer"]["version"] == ENGLISH.version


def test_all_speakers_are_the_same_for_every_model():
    pruned = result(PRUNED, method="wanda", sparsity=0.5)
    lines = summarise([result(DENSE), pruned, result(DENSE[:2], speaker="ben")])
    assert [(line.speakers, line.words) for line in lines if line.speaker is None] == [(1, 6)] * 2
    other = result(DENSE[:2], speaker="ben", method="random", sparsity=0.5)
    lines = summarise([result(DENSE), pruned, result(DENSE[:2], speaker="ben"), other])
    assert all(line.speaker is not None for line in lines)


def test_results_that_do_not_belong_together_are_refused():
    with pytest.raises(ResultsError, match="different normalisers"):
        summarise([result(DENSE), result(PRUNED, method="wanda", language="de")])
    with pytest.raises(ResultsError, match="ann: dense was not measured"):
        summarise([result(PRUNED, method="wanda", sparsity=0.5)])
    with pytest.raises(ResultsError, match="different utterances"):
        summarise([result(DENSE), result(PRUNED[:1], method="wanda", sparsity=0.5)])
