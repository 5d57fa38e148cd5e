"""Results as files: against counts made by hand, read back, and refused where they do not fit."""

import csv
import io
import json

import pytest

from fpspeech.evaluation import Hallucinations, text_normalizer, word_errors
from fpspeech.results import (
    Result,
    ResultsError,
    error_report,
    inline_differences,
    read_result,
    summaries_csv,
    summaries_json,
    summaries_markdown,
    summarise,
    write_result,
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


def test_files_hold_what_was_counted_by_hand(tmp_path):
    folder = tmp_path / "ann" / "wanda"
    write_result(folder, result(PRUNED, method="wanda", sparsity=0.5))
    lines = [json.loads(line) for line in (folder / "utterances.jsonl").open()]
    assert [(line["id"], line["S"], line["D"], line["I"], line["words"]) for line in lines] == [
        ("ann-0", 1, 1, 0, 4),
        ("ann-1", 0, 0, 1, 2),
        ("ann-2", 0, 0, 0, 0),
    ]
    assert lines[0]["reference"] == "the cat sat on"
    assert lines[0]["hypothesis"] == "a cat sat"
    value = json.loads((folder / "result.json").read_text())
    assert value["wer"] == 3 / 6
    assert (value["substitutions"], value["deletions"], value["insertions"]) == (1, 1, 1)
    assert value["empty_references"] == 1
    assert value["normalizer"]["name"] == ENGLISH.name
    assert value["normalizer"]["version"] == ENGLISH.version
    assert "cat" not in (folder / "result.json").read_text(), "rates without transcripts"


def test_a_result_is_read_back_as_it_was(tmp_path):
    written = result(PRUNED, method="wanda", sparsity=0.5, wall_seconds=1.5)
    write_result(tmp_path / "x", written)
    assert read_result(tmp_path / "x") == written
    write_result(tmp_path / "x", result(DENSE))  # replaced as a whole
    assert read_result(tmp_path / "x").method == "dense"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_words_with_unicode_line_separators_are_read_back(tmp_path):
    written = result(["the cat\u2028sat on", "one night", ""], language="de")
    write_result(tmp_path / "x", written)
    assert read_result(tmp_path / "x") == written


def test_damaged_results_name_the_file(tmp_path):
    write_result(tmp_path / "x", result(DENSE))
    (tmp_path / "x" / "utterances.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(ResultsError, match=r"utterances\.jsonl cannot be read.*run the stage"):
        read_result(tmp_path / "x")
    with pytest.raises(ResultsError, match=r"result\.json cannot be read"):
        read_result(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("the cat sat on", "a cat sat", "[sub: the→a] cat sat [del: on]"),
        ("one light", "one light light", "one light [ins: light]"),
        ("one two", "", "[del: one] [del: two]"),
        ("", "hello", "[ins: hello]"),
        ("same words", "same words", "same words"),
    ],
)
def test_differences_stand_in_line(reference, hypothesis, expected):
    assert inline_differences(reference, hypothesis) == expected


def test_characters_are_compared_where_they_are_the_unit():
    assert inline_differences("猫がいる", "犬がいる", "character") == "[sub: 猫→犬]がいる"


def test_the_error_report_ranks_confusions_and_shows_empty_references():
    references = ["the cat", "the dog", "a cat", "(cough)"]
    heard = ["a cat", "a dog", "a cap", "hello"]
    text = error_report(word_errors(list("abcd"), references, heard, ENGLISH))
    assert "50.0 % of 6 words wrong: 3 substitutions" in text
    assert text.index("     2  the→a") < text.index("     1  cat→cap")
    assert "a (1 S, 0 D, 0 I of 2)\n    [sub: the→a] cat\n" in text
    assert "empty references, left out of the rate: 1" in text
    assert text.endswith("Utterances with an empty reference\n\nd\n    hello\n")
    assert f"{ENGLISH.name} {ENGLISH.version}" in text


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
