"""The table of costs: every way runs, in the order of the table, on tiny models."""

import contextlib
import io
import subprocess
import sys

import pytest
import soundfile
from tiny_whisper import tiny_whisper

from recipes.benchmark import cost


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs the command lines that the recipe makes without starting a process for each."""

    def run(command, **options):
        output = io.StringIO()
        with monkeypatch.context() as patch, contextlib.redirect_stdout(output):
            patch.setattr(sys, "argv", command[1:])
            cost.main()
        return subprocess.CompletedProcess(command, 0, output.getvalue())

    monkeypatch.setattr(cost.subprocess, "run", run)


def table(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["cost.py", "--threads", "1", *arguments])
    cost.main()
    title, *lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[3:]]
    return title, {row[0]: row[1:] for row in rows}


def test_every_way_has_a_row(tiny_group, speech, in_this_process, capsys, monkeypatch):
    arguments = ["--model", str(tiny_group), "--audio", str(speech / "manifest.jsonl")]
    title, rows = table(capsys, monkeypatch, *arguments, "--speaker", "ann", "--seconds", "1")
    assert "1 s of audio in 2 recordings" in title  # of 0.6 and 0.7 s
    assert list(rows) == list(cost.WAYS)
    operations = {way: cells[1] for way, cells in rows.items()}
    assert operations["listening, sums"] == "1.00 x"
    assert operations["inference, pruned"] == "1.00 x"
    assert float(rows["inference, pruned"][2].split()[0]) < 0.9
    # Ten passes forward and back, and one to transcribe. Back costs at most 2.5 passes
    # (attention), at least about 1 (layers that are not trained pass a gradient on).
    assert 20 < float(operations["SUTA"].split()[0]) < 36
    assert rows["SUTA"][0] == rows["inference, pruned"][0] == "every use"
    assert rows["LoRA on pseudo-labels"][0] == rows["listening, sums"][0] == "once"


def test_what_needs_ctc_has_no_row_for_a_model_without_it(
    tmp_path, in_this_process, capsys, monkeypatch
):
    model = tiny_whisper(tmp_path / "whisper")
    (tmp_path / "audio" / "ann").mkdir(parents=True)
    samples = [0.1, -0.1] * 4_000
    soundfile.write(tmp_path / "audio" / "ann" / "one.wav", samples, 16_000)
    tried = (*list(cost.WAYS)[:2], cost.EVOLVING, cost.HEAD, cost.REFIT, cost.SUTA)
    monkeypatch.setattr(cost, "WAYS", {way: cost.WAYS[way] for way in tried})
    _, rows = table(capsys, monkeypatch, "--model", str(model), "--audio", str(tmp_path / "audio"))
    assert list(rows) == ["one inference pass", "listening, sums"]


def test_several_speakers_at_once_are_refused(tiny_group, speech, monkeypatch):
    arguments = ["--model", str(tiny_group), "--audio", str(speech / "manifest.jsonl")]
    monkeypatch.setattr(sys, "argv", ["cost.py", *arguments])
    with pytest.raises(SystemExit, match="holds 2 speakers: choose one by --speaker"):
        cost.main()
