"""The commands as a person runs them: output, exit codes, JSON, messages."""

import dataclasses
import inspect
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from commands import run, squeezed

from fpspeech import Config, PruningConfig, cli


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_personalize_then_evaluate(capsys, here, speech, tiny_group):
    where = ("--audio", speech, "--model", tiny_group)
    code, out, _ = run(capsys, "personalize", "--speaker", "ann", *where)
    assert code == 0
    assert "5 recordings" in out
    assert "lm_head: output layer" in out
    assert "next: fpspeech evaluate personal/ann" in out
    code, out, _ = run(capsys, "evaluate", "personal/ann", *where)
    assert code == 0
    assert "dense" in out
    assert "on 3 recordings; left out: 0 used to adapt" in squeezed(out)
    assert sorted(path.name for path in (here / "personal").iterdir()) == ["ann"]


def test_json_is_all_there_is_on_standard_output(capsys, here, speech, tiny_group):
    where = ("--audio", speech, "--model", tiny_group, "--json")
    code, out, _ = run(capsys, "personalize", "--speaker", "ann", "--sparsity", 0.5, *where)
    assert code == 0
    made = json.loads(out)
    assert made["recordings"] == 5
    code, out, _ = run(capsys, "evaluate", "personal/ann", *where)
    measured = json.loads(out)
    assert measured["recordings"] == 3
    assert measured["words"] == 6
    assert measured["dense"]["wer"] >= 0
    assert "light" not in out.lower(), "no transcript in the output"
    code, out, _ = run(capsys, "speakers", "--audio", speech, "--json")
    assert [(s["name"], s["adapt"], s["test"]) for s in json.loads(out)] == [
        ("ann", 5, 3),
        ("ben", 5, 3),
    ]


def test_evaluate_finds_the_speaker_and_never_tests_on_what_was_heard(
    capsys, here, speech, tiny_group
):
    (speech / "manifest.jsonl").unlink()
    for path in speech.rglob("*.wav"):
        path.with_suffix(".txt").write_text("light on")
    where = ("--audio", speech, "--model", tiny_group)
    run(capsys, "personalize", "--speaker", "ben", "--hold-out", 0.5, *where)
    code, out, _ = run(capsys, "evaluate", "personal/ben", *where, "--json")
    assert code == 0
    measured = json.loads(out)
    assert (measured["recordings"], measured["already_heard"]) == (4, 4)
    run(capsys, "personalize", "--speaker", "ann", *where)
    code, _, err = run(capsys, "evaluate", "personal/ann", *where)
    assert code == 1
    assert "8 were used to adapt" in squeezed(err)
    assert "--hold-out" in err


def test_dry_run_listens_to_nothing_and_writes_nothing(capsys, here, tiny_group):
    code, out, _ = run(capsys, "personalize", "--dry-run", "--model", tiny_group)
    assert code == 0
    assert "can be pruned" in out
    assert "encoder.layers.1.feed_forward.output_dense" in out
    assert list(here.iterdir()) == []
    code, out, _ = run(capsys, "personalize", "--dry-run", "--model", tiny_group, "--json")
    assert json.loads(out)["layers"]


def test_a_typing_error_in_the_speaker_names_the_nearest(capsys, here, speech, tiny_group):
    code, _, err = run(
        capsys, "personalize", "--speaker", "anne", "--audio", speech, "--model", tiny_group
    )
    assert code == 1
    assert "ann" in err
    assert "Traceback" not in err


def test_several_speakers_need_a_name(capsys, here, speech, tiny_group):
    code, _, err = run(capsys, "personalize", "--audio", speech, "--model", tiny_group)
    assert code == 2
    assert "ann, ben" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sparsity", 70), "did you mean 0.7"),
        (("--normalize", "features=1"), "needs numbers of other people"),
        (("--normalize", "features"), "expected none, search, or strengths"),
        (("--score", "contrast"), "make them with `fpspeech generic --audio DIR`"),
        (("--shrinkage", "auto"), "the shrinkage 'auto' needs numbers of other people"),
        (("--shrinkage", "some"), "expected a shrinkage of 'none', 'auto'"),
        (("--allocation", "fair"), "allocation: expected one of"),
        (("--generic", "./nowhere.safetensors"), "nowhere.safetensors does not exist"),
        (("--score", "wnda"), "no score is named 'wnda'"),
        (("--model", "./nowhere"), "is no folder"),
        (("--audio", "./nowhere"), "nowhere"),
        (("--exclude", "lm_haed"), "no module is named"),
        (("--component", "decoder.ffn=0.5"), "has no component 'decoder.ffn'"),
    ],
)
def test_bad_settings_are_one_message_and_exit_code_1(
    capsys, here, speech, tiny_group, options, message
):
    arguments = {"--speaker": "ann", "--audio": speech, "--model": tiny_group}
    arguments |= dict([options])
    flat = [part for pair in arguments.items() for part in pair]
    code, _, err = run(capsys, "personalize", *flat)
    assert code == 1
    assert message in squeezed(err)
    assert not (here / "personal").exists()


def test_an_output_that_exists_is_refused_before_listening(capsys, here, speech, tiny_group):
    where = ("--speaker", "ann", "--audio", speech, "--model", tiny_group)
    run(capsys, "personalize", *where)
    code, _, err = run(capsys, "personalize", *where)
    assert code == 1
    assert "exists already" in err
    assert "of audio" not in err
    assert run(capsys, "personalize", *where, "--overwrite")[0] == 0


def test_transcribe_prints_a_line_a_recording(capsys, here, speech, tiny_group):
    files = sorted((speech / "ann").glob("*.wav"))[:2]
    code, out, _ = run(capsys, "transcribe", *files, "--model", tiny_group)
    assert code == 0
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(path) for path in files]
    (here / "bad.wav").write_text("no audio")
    code, out, err = run(capsys, "transcribe", files[0], "bad.wav", "--model", tiny_group)
    assert code == 1
    assert "skipped" in err
    assert len(out.splitlines()) == 1


def test_transcribe_with_a_personal_model_differs_from_dense(capsys, here, speech, tiny_group):
    where = ("--audio", speech, "--model", tiny_group)
    run(capsys, "personalize", "--speaker", "ann", "--sparsity", 0.9, *where)
    file = sorted((speech / "ann").glob("*.wav"))[0]
    _, dense, _ = run(capsys, "transcribe", file, "--model", tiny_group)
    _, adapted, _ = run(
        capsys, "transcribe", file, "--model", tiny_group, "--personal", "personal/ann"
    )
    assert dense != adapted


def test_merge_writes_a_stock_folder(capsys, here, speech, tiny_group):
    run(capsys, "personalize", "--speaker", "ann", "--audio", speech, "--model", tiny_group)
    code, _, _ = run(capsys, "merge", "personal/ann", "--model", tiny_group, "--out", "merged")
    assert code == 0
    assert (here / "merged" / "model.safetensors").is_file()
    code, _, err = run(capsys, "merge", "personal/ann", "--out", "other")
    assert code == 2
    assert "--model" in err


def test_compare_prints_and_writes_a_table(capsys, here, speech, tiny_group):
    arguments = ("--audio", speech, "--model", tiny_group, "--sparsity", 0.5, "--out", "table")
    code, out, _ = run(capsys, "compare", *arguments)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "| speaker | method | no zeros | 50% zeros |"
    rows = [line.split(" | ")[:2] for line in lines[2:]]
    methods = ("dense", "obs+least_squares+owl+refit", "fine_pruning", "magnitude")
    assert rows[:4] == [["| ann", method] for method in methods]
    assert ["| all", "dense"] in rows
    assert (here / "table" / "table.md").read_text() == out.rstrip("\n") + "\n"
    values = json.loads((here / "table" / "table.json").read_text())
    assert len(values) == 10
    assert all(value["words"] == 6 for value in values)


def test_ctrl_c_keeps_what_was_heard_and_the_same_command_goes_on(here, tiny_group):
    """A real process, a real signal, and the same mask as an unbroken run."""
    samples = 0.1 * np.random.default_rng(0).standard_normal(16_000 * 240)
    (here / "long").mkdir()
    (here / "long" / "0.wav").write_text("no audio: its line says that listening has begun")
    for number in range(1, 4):
        soundfile.write(here / "long" / f"{number}.wav", np.roll(samples, number), 16_000)
    command = [sys.executable, "-m", "fpspeech.cli", "personalize", "--speaker", "ann"]
    command += ["--audio", "long", "--model", str(tiny_group), "--window-seconds", "1"]
    command += ["--no-refit-head"]  # it listens anew, which takes its time
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        [*command, "--out", "broken"], cwd=here, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert "skipped" in first.stderr.readline()
    time.sleep(0.3)
    first.send_signal(signal.SIGINT)
    err = first.communicate(timeout=120)[1]
    assert first.returncode == 130, err
    assert "run the same command again" in squeezed(err)
    assert not (here / "broken").exists()
    saved = here / ".broken.statistics.safetensors"
    assert saved.is_file()
    for out in ("broken", "unbroken"):
        subprocess.run(
            [*command, "--out", out], cwd=here, env=environment, check=True, capture_output=True
        )
    assert not saved.exists()
    masks = [(here / name / "mask.safetensors").read_bytes() for name in ("broken", "unbroken")]
    assert masks[0] == masks[1]


def test_the_defaults_of_the_command_are_those_of_the_settings():
    options = inspect.signature(cli.personalize).parameters
    compared = {"sparsity"}
    assert options["sparsity"].default is None  # the family's, see `default_sparsity`
    for settings in (PruningConfig, Config):
        for field in dataclasses.fields(settings):
            if field.name in options and field.name not in {*compared, "exclude"}:
                assert options[field.name].default == field.default, field.name
                compared.add(field.name)
    assert {"score", "bias", "shrinkage", "order", "normalize", "search_budget"} <= compared


@pytest.mark.parametrize(
    "command",
    ["generic", "personalize", "evaluate", "transcribe", "speakers", "merge", "compare"],
)
def test_every_command_has_help_with_an_example(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"Example: fpspeech {command}" in squeezed(out)
