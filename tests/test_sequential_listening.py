"""Sequential order over recordings: the same as over tensors in memory, skips, going on."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

from fpspeech.adaptation import adapt_to
from fpspeech.config import Config
from fpspeech.corpora import Utterance, inspect_recording, read_utterances, read_windows
from fpspeech.listening import Interrupted, Listener, NothingHeardError
from fpspeech.models import load_speech_model
from fpspeech.personalize_speech import make_personal, personalize, select_layers_of
from fpspeech.pruning import PruningConfig, prune_sequentially, select_layers
from fpspeech.sequential_listening import RecordingsChangedError, prune_while_listening

RATE = 16_000
CONFIG = PruningConfig(sparsity=0.5, order="sequential", product_stride=1)


@pytest.fixture(params=["tiny_group", "tiny_layer"])
def model(request):
    return load_speech_model(request.getfixturevalue(request.param), device="cpu")


def layers_of(model):
    layers = select_layers(model.network, dict(model.exclusions)).layers
    if model.family == "whisper":  # 30 s at every pass: the last blocks are enough
        layers = tuple(layer for layer in layers if ".layers.1." in layer.name)
    return layers


@pytest.fixture
def layers(model):
    return layers_of(model)


@pytest.fixture
def utterances(speech):
    return read_utterances(speech, speaker="ann")[:3]


def assert_same(found, expected):
    assert list(found.masks) == list(expected.masks)
    for name, mask in expected.masks.items():
        assert torch.equal(found.masks[name], mask), name
    assert found.kept.keys() == expected.kept.keys()
    for name, kept in expected.kept.items():
        assert torch.equal(found.kept[name], kept), name


def windows_of(model, utterances):
    for utterance in utterances:
        yield from read_windows(
            inspect_recording(utterance.audio),
            sampling_rate=model.sampling_rate,
            window_seconds=model.window_seconds,
        )


@pytest.mark.parametrize("name", ["tiny_group", "tiny_layer", "tiny_whisper_folder"])
def test_recordings_give_what_their_samples_in_memory_give(name, request, utterances, monkeypatch):
    """And Whisper, which decodes a window once, reads in every stage what the dense model wrote."""
    model = load_speech_model(request.getfixturevalue(name), device="cpu")
    layers, utterances = layers_of(model), utterances[:2]
    state = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    replays = []
    for window in windows_of(model, utterances):
        replays += model.replays([window], model.remember([window]))
    expected = prune_sequentially(model.network, layers, lambda: replays, CONFIG)
    remember, calls = type(model).remember, []
    monkeypatch.setattr(
        type(model), "remember", lambda self, windows: calls.append(1) or remember(self, windows)
    )
    found = prune_while_listening(model, layers, utterances, CONFIG)
    assert len(calls) == len(utterances)
    assert_same(found.pruned, expected)
    assert found.stages > 8
    after = model.network.state_dict()
    assert all(torch.equal(state[name], after[name]) for name in state)


def test_skips_are_reported_once_and_seconds_add_up_to_the_audio(
    model, layers, utterances, tmp_path
):
    soundfile.write(tmp_path / "quiet.wav", np.zeros(RATE), RATE)
    (tmp_path / "broken.wav").write_text("words")
    bad = [Utterance(name, tmp_path / f"{name}.wav", "ann") for name in ("quiet", "broken")]
    lines, seconds = [], []
    listener = Listener(
        heard=seconds.append, skipped=lambda skipped, message: lines.append(message)
    )
    found = prune_while_listening(model, layers, [*bad, *utterances], CONFIG, listener=listener)
    assert found.heard.skipped_by_reason == {"silence only": 1, "not audio": 1}
    assert len(lines) == 2
    assert sum(seconds) == pytest.approx(found.heard.seconds)
    assert_same(found.pruned, prune_while_listening(model, layers, utterances, CONFIG).pruned)


def test_nothing_to_hear_is_an_error_with_the_reasons(model, layers, tmp_path):
    soundfile.write(tmp_path / "quiet.wav", np.zeros(RATE), RATE)
    with pytest.raises(NothingHeardError, match=r"of 1 recordings none.*\(1 silence only\)"):
        prune_while_listening(
            model, layers, [Utterance("quiet", tmp_path / "quiet.wav", "ann")], CONFIG
        )


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    model, layers, utterances, tmp_path, batch_size
):
    checkpoint = tmp_path / "stages.safetensors"
    whole = prune_while_listening(model, layers, utterances, CONFIG, batch_size=batch_size)
    batches = -(-len(utterances) // batch_size)
    runs = windows = 0
    found = None
    while found is None:
        runs += 1
        here = []

        def stop(here=here):
            here.append(1)
            return len(here) == 3 * batches + 1  # three stages, and a part of the fourth

        options = {"checkpoint": checkpoint, "listener": Listener(stop=stop)}
        stage = 3 * runs + 1
        if stage > whole.stages:
            found = prune_while_listening(
                model, layers, utterances, CONFIG, batch_size=batch_size, **options
            )
        else:
            with pytest.raises(Interrupted, match=f"in stage {stage} of {whole.stages}"):
                prune_while_listening(
                    model, layers, utterances, CONFIG, batch_size=batch_size, **options
                )
            assert checkpoint.is_file()
        windows += len(here)
    assert windows == whole.stages * batches + runs - 1  # no finished stage ran again
    assert_same(found.pruned, whole.pruned)
    assert found.heard == whole.heard


@pytest.mark.parametrize("change", ["sparsity", "recordings", "content", "damaged"])
def test_stages_of_another_run_are_not_gone_on_from(
    tiny_group, utterances, speech, tmp_path, change
):
    model = load_speech_model(tiny_group, device="cpu")
    layers = select_layers(model.network, dict(model.exclusions)).layers
    checkpoint = tmp_path / "stages.safetensors"
    calls = []

    def stop():
        calls.append(1)
        return len(calls) == 7

    with pytest.raises(Interrupted):
        prune_while_listening(
            model, layers, utterances, CONFIG, checkpoint=checkpoint, listener=Listener(stop=stop)
        )
    config = CONFIG
    if change == "sparsity":
        config = PruningConfig(sparsity=0.25, order="sequential", product_stride=1)
    elif change == "recordings":
        utterances = utterances[:2]
    elif change == "content":
        shutil.copy(read_utterances(speech, speaker="ben")[0].audio, utterances[1].audio)
    else:
        checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    seen = []
    found = prune_while_listening(
        model,
        layers,
        utterances,
        config,
        checkpoint=checkpoint,
        listener=Listener(heard=seen.append),
    )
    assert len(seen) == found.stages * len(utterances)
    assert_same(found.pruned, prune_while_listening(model, layers, utterances, config).pruned)


def test_recordings_that_change_meanwhile_are_an_error(tiny_group, utterances, speech):
    model = load_speech_model(tiny_group, device="cpu")
    layers = select_layers(model.network, dict(model.exclusions)).layers
    other = read_utterances(speech, speaker="ben")[0].audio
    calls = []

    def heard(seconds):
        calls.append(1)
        if len(calls) == 4:
            shutil.copy(other, utterances[2].audio)

    with pytest.raises(RecordingsChangedError, match=r"3 recordings.*leave them alone"):
        prune_while_listening(model, layers, utterances, CONFIG, listener=Listener(heard=heard))


def test_personalize_in_sequential_order(model, utterances, tmp_path):
    config = Config(pruning=CONFIG, allocation="uniform")
    personal = personalize(model, utterances, config)
    layers = select_layers_of(model, config).layers
    expected = prune_while_listening(model, layers, utterances, CONFIG)
    assert_same(personal, expected.pruned)
    assert personal.report["recordings"] == 3
    personal.save(tmp_path / "personal")
    settings = json.loads((tmp_path / "personal" / "fpspeech.json").read_text())
    assert settings["config"]["pruning"]["order"] == "sequential"
    with personal.apply(model):
        model.transcribe(windows_of(model, utterances))
    again = make_personal(
        adapt_to(model, layers, utterances, config), select_layers_of(model, config), config
    )
    assert_same(again, expected.pruned)
    assert again.recordings == personal.recordings
    assert again.seconds == personal.seconds == expected.heard.seconds
