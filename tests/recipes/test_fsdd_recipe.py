"""The FSDD recipe finds the corpus, says how to get it, and never trains on who is left out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from fpspeech.corpora import read_utterances

ROOT = Path(__file__).parents[2]


def run_stage_0(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    variables = {key: value for key, value in os.environ.items() if key != "FPSPEECH_DATA"}
    return subprocess.run(
        ["recipes/fsdd/run.sh", "--stop-stage", "0", "--exp", str(folder / "exp"), *arguments],
        cwd=ROOT,
        env=variables | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def corpus(tmp_path):
    """Three people, two digits, takes 0, 24, 25 and 49, in the corpus's own layout."""
    folder = tmp_path / "fsdd" / "recordings"
    folder.mkdir(parents=True)
    for speaker in ("theo", "nicolas", "lucas"):
        for digit in (0, 7):
            for take in (0, 24, 25, 49):
                samples = [0.1 * ((digit + take + i) % 7 - 3) / 3 for i in range(2000)]
                soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", samples, 8000)
    return folder.parent


def test_without_the_corpus_the_download_command_is_shown(tmp_path):
    done = run_stage_0(tmp_path)
    assert done.returncode != 0
    assert "git clone" in done.stderr
    done = run_stage_0(tmp_path, "--data-dir", str(tmp_path))
    assert done.returncode != 0
    assert "no recordings like 0_theo_0.wav" in done.stderr


@pytest.mark.parametrize("by", ["option", "variable"])
def test_the_manifest_splits_the_left_out_speakers_by_take(tmp_path, corpus, by):
    if by == "option":
        done = run_stage_0(tmp_path, "--data-dir", str(corpus))
    else:
        done = run_stage_0(tmp_path, FPSPEECH_DATA=str(corpus.parent))
    assert done.returncode == 0, done.stderr
    utterances = read_utterances(tmp_path / "exp" / "manifest.jsonl", with_text=True)
    assert {utterance.speaker for utterance in utterances} == {"theo", "nicolas"}
    for utterance in utterances:
        digit, _, take = utterance.audio.stem.split("_")
        assert utterance.split == ("adapt" if int(take) < 25 else "test")
        assert utterance.text == {"0": "ZERO", "7": "SEVEN"}[digit]
    training = (tmp_path / "exp" / "training.jsonl").read_text().splitlines()
    assert {json.loads(line)["speaker"] for line in training} == {"lucas"}
