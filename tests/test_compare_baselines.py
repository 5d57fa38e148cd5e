"""Baselines in the same table: what they hear, and that nothing of them stays in the model."""

from dataclasses import replace

import pytest
import torch

from fpspeech import Config, PruningConfig, load_speech_model, read_utterances
from fpspeech.compare import compare_speakers
from fpspeech.compare_baselines import BASELINES, run_baseline
from fpspeech.evaluate_speech import choose_test_set, recognise
from fpspeech.evaluation import text_normalizer
from fpspeech.evaluation.baselines import suta_transcribe
from fpspeech.listening import WindowStream
from fpspeech.pruning import PruningError

ENGLISH = text_normalizer("en")


@pytest.fixture
def model(tiny_group):
    return load_speech_model(tiny_group, device="cpu")


@pytest.fixture
def ann(speech):
    return [each for each in read_utterances(speech, with_text=True) if each.speaker == "ann"]


@pytest.fixture
def adapt(ann):
    return [replace(each, text=None) for each in ann if each.split == "adapt"]


def test_suta_hears_every_recording_adapted_to_it_alone(model, ann, adapt):
    test_set = choose_test_set(ann)
    found = run_baseline("suta", model, adapt, test_set, ENGLISH).recognition
    for utterance, errors in zip(test_set.utterances, found.errors.utterances, strict=True):
        alone = suta_transcribe(model, WindowStream(model, [utterance]))
        assert errors.hypothesis == ENGLISH(alone.text)


@pytest.mark.parametrize("name", BASELINES)
def test_the_model_is_left_as_it_was(model, ann, adapt, name):
    before = {key: tensor.clone() for key, tensor in model.network.state_dict().items()}
    dense = recognise(model, choose_test_set(ann), ENGLISH)
    run_baseline(name, model, adapt, choose_test_set(ann), ENGLISH)
    after = model.network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert recognise(model, choose_test_set(ann), ENGLISH).errors == dense.errors


def test_baselines_stand_in_the_table_before_the_methods(model, speech):
    rows = compare_speakers(
        model,
        read_utterances(speech, with_text=True),
        ["ann"],
        Config(pruning=PruningConfig(sparsity=0.5)),
        ["magnitude"],
        [0.5],
        ENGLISH,
        baselines=["lora"],
    )
    assert [row.method for row in rows] == ["dense", "lora", "magnitude"]
    assert rows[1].against_dense is not None
    assert rows[1].sparsity == 0


def test_unknown_baselines_and_suta_on_another_family_are_refused(model, ann, adapt, monkeypatch):
    with pytest.raises(PruningError, match="no baseline is named 'tent'"):
        run_baseline("tent", model, adapt, choose_test_set(ann), ENGLISH)
    monkeypatch.setattr("fpspeech.compare_baselines.Wav2Vec2", type("Other", (), {}))
    with pytest.raises(PruningError, match="SUTA adapts CTC models"):
        run_baseline("suta", model, adapt, choose_test_set(ann), ENGLISH)
