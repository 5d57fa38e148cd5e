"""Results as files: against counts made by hand, read back, and refused where they do not fit."""

import json

import pytest

from fpspeech.evaluation import Hallucinations, text_normalizer, word_errors
from fpspeech.results import (
    Result,
    ResultsError,
    read_result,
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
