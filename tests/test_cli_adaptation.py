"""Numbers of other people, automatic sparsity, allocations and controls, by the commands."""

import json
import shutil
from dataclasses import asdict

import pytest
import soundfile
from commands import run, squeezed
from tiny_whisper import tiny_whisper

from fpspeech import Personal, load_speech_model, personalize, read_utterances
from fpspeech.model_card import personal_card


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def make_generic(capsys, speech, model, out, *options) -> str:
    code, said, err = run(
        capsys, "generic", "--audio", speech / "ben", "--model", model, "--out", out, *options
    )
    assert code == 0, err
    return said


def test_generic_numbers_then_normalised(capsys, here, speech, tiny_group):
    out = make_generic(capsys, speech, tiny_group, "numbers/generic.safetensors", "--minutes", 0.05)
    assert out.startswith("1 speakers, 0.1 minutes")
    where = ("--speaker", "ann", "--audio", speech, "--model", tiny_group, "--json")
    given = (*where, "--generic", "numbers/generic.safetensors")
    code, out, _ = run(capsys, "personalize", *given, "--normalize", "features=1,layer0=0.5")
    assert code == 0
    assert json.loads(out)["normalization"]["used"] == {"features": 1.0, "layer0": 0.5}
    personal = Personal.load(here / "personal" / "ann")
    assert "wav2vec2.feature_projection.layer_norm.weight" in personal.values
    code, out, _ = run(
        capsys, "personalize", *given, "--normalize", "search", "--search-budget", 2,
        "--full-covariance", "--search-objective", "uncertainty", "--out", "searched",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["normalization"]["evaluations"] <= 2
    assert json.loads(out)["normalization"]["objective"] == "uncertainty"
    code, _, _ = run(capsys, "evaluate", "personal/ann", "--audio", speech, "--model", tiny_group)
    assert code == 0
    code, _, err = run(capsys, "personalize", *given, "--normalize", "nose=1", "--out", "nose")
    assert code == 1
    assert "has no site 'nose' to normalise: expected one of features" in squeezed(err)
    code, _, err = run(capsys, "personalize", *given, "--score", "contrast", "--out", "contrast")
    assert code == 1
    assert "make them with `fpspeech generic --statistics`" in squeezed(err)
    assert not (here / "contrast").exists()


def test_generic_numbers_beside_the_weights_are_found(capsys, here, speech, tiny_group):
    model = here / "base"
    shutil.copytree(tiny_group, model)
    made = model / "generic.safetensors"
    make_generic(capsys, speech, model, made, "--statistics", "--products")
    where = ("--speaker", "ann", "--audio", speech, "--model", model, "--json")
    for options in (
        ("--score", "contrast", "--update", "none"),
        ("--shrinkage", "auto"),
        ("--shrinkage", "0.5"),
        ("--normalize", "features=1"),
    ):
        code, _, err = run(capsys, "personalize", *where, *options, "--out", "ann", "--overwrite")
        assert code == 0, err


def test_generic_numbers_are_not_replaced_unasked(capsys, here, speech, tiny_group):
    file = here / "generic.safetensors"
    file.write_text("somebody's")
    where = ("generic", "--audio", speech / "ben", "--model", tiny_group, "--minutes", 0.05)
    code, _, err = run(capsys, *where, "--out", file)
    assert code == 1
    assert "exists already: give another file, or --overwrite it" in squeezed(err)
    assert file.read_text() == "somebody's"
    code, _, err = run(capsys, *where, "--out", here)
    assert code == 1
    assert "is a folder: give the name of a file" in squeezed(err)
    code, out, _ = run(capsys, *where, "--out", file, "--overwrite")
    assert code == 0
    assert out.startswith("1 speakers")


def test_generic_numbers_of_another_base_are_refused(capsys, here, speech, tiny_group, tiny_layer):
    make_generic(capsys, speech, tiny_layer, "other.safetensors")
    code, _, err = run(
        capsys, "personalize", "--speaker", "ann", "--audio", speech, "--model", tiny_group,
        "--normalize", "features=1", "--generic", "other.safetensors",
    )  # fmt: skip
    assert code == 1
    assert "belong to a base with SHA-256" in squeezed(err)
    code, _, err = run(
        capsys, "generic", "--audio", speech, "--out", "x.safetensors", "--products",
        "--model", tiny_group,
    )  # fmt: skip
    assert code == 2
    assert "goes with --statistics" in squeezed(err)


def test_an_automatic_sparsity_is_found_and_shown(capsys, here, speech, tiny_group):
    where = ("--speaker", "ann", "--audio", speech, "--model", tiny_group)
    code, out, err = run(capsys, "personalize", *where, "--sparsity", "auto", "--json")
    assert code == 0
    found = json.loads(out)["automatic_sparsity"]
    assert "30% zeros: divergence" in squeezed(err)
    personal = Personal.load(here / "personal" / "ann")
    assert personal.config.automatic
    assert personal.config.pruning.sparsity == found["sparsity"]
    code, _, err = run(capsys, "personalize", *where, "--sparsity", "much")
    assert code == 2
    assert "expected a share such as 0.7, or auto; found 'much'" in squeezed(err)


def test_an_allocation_is_spread_over_the_layers(capsys, here, speech, tiny_group):
    where = ("--speaker", "ann", "--audio", speech, "--model", tiny_group)
    code, out, _ = run(capsys, "personalize", *where, "--allocation", "erk", "--bias", "--json")
    assert code == 0
    layers = json.loads(out)["layers"].values()
    assert len({layer["sparsity"] for layer in layers}) > 3


def test_compare_with_controls_and_forgetting(capsys, here, speech, tiny_group):
    (here / "others").mkdir()
    for number, path in enumerate(sorted((speech / "ben").glob("*.wav"))):
        samples, rate = soundfile.read(path)
        soundfile.write(here / "others" / f"{number}.wav", samples[::-1], rate)
    arguments = ("--audio", speech, "--model", tiny_group, "--sparsity", 0.5, "--speaker", "ann")
    controls = ("--method", "wanda", "--method", "wanda@another", "--method", "wanda@generic")
    code, _, err = run(capsys, "compare", *arguments, *controls)
    assert code == 1
    assert "--generic-audio" in squeezed(err)
    code, out, _ = run(
        capsys, "compare", *arguments, *controls, "--generic-audio", here / "others",
        "--forgetting", 2, "--minutes", 0.02, "--json",
    )  # fmt: skip
    assert code == 0
    rows = json.loads(out)
    assert [row["method"] for row in rows] == ["dense", "wanda", "wanda@another", "wanda@generic"]
    assert all(row["others_wer"] is not None for row in rows)
    code, _, err = run(capsys, "compare", *arguments, "--method", "contrast")
    assert code == 1
    assert "score 'contrast' needs numbers of other people" in squeezed(err)
    code, _, err = run(capsys, "compare", *arguments, "--method", "wanda+nonsense")
    assert code == 1
    assert "says 'nonsense'" in squeezed(err)


@pytest.mark.parametrize(
    ("option", "name", "done", "what"),
    [
        ("--evolve", "evolution", "evolved", "evolved"),
        ("--adapt-head", "head", "adapted", "output layer"),
    ],
)
def test_what_is_tuned_and_what_came_of_it_is_said(
    capsys, here, speech, tiny_group, option, name, done, what
):
    given = ("--speaker", "ann", "--audio", speech, "--model", tiny_group, option)
    code, out, err = run(capsys, "personalize", *given)
    assert code == 0, err
    account = Personal.load(here / "personal" / "ann").report[name]
    if account[done]:
        before, after = account["loss_other_half"]
        assert f"{what} yes: loss {before:.3f} -> {after:.3f} on held-back" in squeezed(out)
    else:
        assert f"{what} no: {account['reason']}" in squeezed(out)


@pytest.mark.parametrize("refits", [True, False])
def test_that_the_output_layer_is_fitted_again_is_said(capsys, here, speech, tiny_group, refits):
    given = ("--speaker", "ann", "--audio", speech, "--model", tiny_group)
    option = () if refits else ("--no-refit-head",)
    code, out, err = run(capsys, "personalize", *given, *option)
    assert code == 0, err
    personal = Personal.load(here / "personal" / "ann")
    assert ("lm_head.weight" in personal.values) is refits
    card = "Its output layer is refitted to what the dense model says"
    written = personal_card(asdict(personal.base), personal.config, personal.report)
    assert (card in written) is refits
    assert ("from the dense model" in squeezed(out)) is refits
    if refits:
        before, after = personal.report["refit"]["divergence"]
        assert f"{before:.3f} -> {after:.3f} nats from the dense model" in squeezed(out)


def test_what_was_normalised_is_said(capsys, here, speech, tiny_group):
    make_generic(capsys, speech, tiny_group, "numbers.safetensors")
    code, out, _ = run(
        capsys, "personalize", "--speaker", "ann", "--audio", speech, "--model", tiny_group,
        "--generic", "numbers.safetensors", "--normalize", "features=1,layer0=0.5",
    )  # fmt: skip
    assert code == 0
    assert "normalised features 1, layer0 0.5" in squeezed(out)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--evolve", "front end cannot be evolved"),
        ("--adapt-head", "output layer cannot be adapted"),
    ],
)
def test_what_needs_a_ctc_model_refuses_a_whisper(capsys, here, speech, tmp_path, option, message):
    model = tiny_whisper(tmp_path / "whisper")
    code, _, err = run(
        capsys, "personalize", "--speaker", "ann", "--audio", speech, "--model", model, option
    )
    assert code == 1
    assert message in squeezed(err)
    assert not (here / "personal").exists()


def test_where_no_sparsity_is_given_a_whisper_loses_less(
    capsys, here, speech, tmp_path, tiny_group
):
    whisper = tiny_whisper(tmp_path / "whisper")
    for model, options, expected in (
        (tiny_group, [], 0.7),
        (whisper, [], 0.3),
        (whisper, ["--sparsity", 0.6], 0.6),
        (whisper, ["--group", "2:4"], 0.5),
    ):
        code, out, _ = run(capsys, "personalize", "--dry-run", "--model", model, "--json", *options)
        assert code == 0
        assert {each["sparsity"] for each in json.loads(out)["layers"].values()} == {expected}
    code, _, _ = run(
        capsys, "personalize", "--speaker", "ann", "--audio", speech, "--model", whisper
    )
    assert code == 0
    settings = json.loads((here / "personal" / "ann" / "fpspeech.json").read_text())
    assert settings["config"]["pruning"]["sparsity"] == 0.3
    model = load_speech_model(whisper, device="cpu")
    personal = personalize(model, read_utterances(speech, speaker="ann")[:1])
    assert personal.config.pruning.sparsity == 0.3
