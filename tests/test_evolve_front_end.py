"""The front end evolved: what is tuned, what confirms it, and what it never sees."""

import json
import math
from dataclasses import replace

import pytest
import torch

from fpspeech import Config, Personal, PruningConfig, load_speech_model, merge
from fpspeech import evolve_front_end as module
from fpspeech.adaptation import adapt_to
from fpspeech.corpora import read_utterances
from fpspeech.demo import demo_folder, demo_model
from fpspeech.evolve_front_end import DRAWN_SECONDS, evolve_front_end
from fpspeech.generic import find_generic
from fpspeech.listening import Interrupted, Listener, WindowStream
from fpspeech.normalize import Normalization, normalize
from fpspeech.personalize import personalize, select_layers_of
from fpspeech.pruning import PruningError
from fpspeech.pruning.evolution import Evolution
from fpspeech.pruning.gains import Gains
from fpspeech.signals import Heard, hear

FEW = Evolution(steps=4, pairs=6)


@pytest.fixture(scope="module")
def model():
    return load_speech_model(demo_model(), device="cpu")


@pytest.fixture(scope="module")
def utterances():
    return [u for u in read_utterances(demo_folder(), speaker="aria") if u.split == "adapt"][:8]


@pytest.fixture(scope="module")
def windows(model, utterances):
    return list(WindowStream(model, utterances))


def states(model):
    return {name: each.clone() for name, each in model.network.state_dict().items()}


def assert_unchanged(model, before):
    state = model.network.state_dict()
    assert all(torch.equal(state[name], each) for name, each in before.items())


def test_the_front_end_alone_is_tuned_and_the_model_is_left_as_it_was(model, windows):
    before = states(model)
    found = evolve_front_end(model, windows, FEW)
    assert_unchanged(model, before)
    assert found.reason is None
    assert set(found.values) == {gain.name for gain in model.gains}
    for name, value in found.values.items():
        front = ("wav2vec2.feature_extractor.", "wav2vec2.feature_projection.")
        assert name.startswith(front)
        assert value.shape == before[name].shape
    scaled = "wav2vec2.feature_extractor.conv_layers.2.conv.weight"
    ratios = (found.values[scaled] / before[scaled]).flatten(1)
    torch.testing.assert_close(ratios, ratios[:, :1].expand_as(ratios), atol=1e-4, rtol=0)
    assert float(ratios.std()) > 0


def test_it_makes_the_model_surer_of_recordings_that_it_did_not_evolve_on(model, windows):
    found = evolve_front_end(model, windows, Evolution(steps=5, pairs=12))
    before, after = found.uncertainty
    assert after < before
    assert found.probability > 0.95
    report = json.loads(json.dumps(found.as_json()))
    assert report["evolved"] is True
    assert report["reason"] is None


def test_a_half_that_confirms_is_never_evolved_on(model, windows, monkeypatch):
    """While it descends, the model hears nothing but the beginnings of every other window."""
    heard = []
    uncertainty = model.uncertainty

    def remembered(batch):
        heard.append(list(batch))
        return uncertainty(batch)

    monkeypatch.setattr(model, "uncertainty", remembered)
    steps = []
    listener = Listener(evolved=lambda step, steps_: steps.append((step, len(heard))))
    evolve_front_end(model, windows, FEW, listener=listener)
    last = steps[-1][1]

    def is_of(window, half):
        return any(torch.equal(window, each[: len(window)]) for each in half)

    for batch in heard[:last]:
        assert all(is_of(each, windows[::2]) for each in batch)
    for batch in heard[last:]:
        assert all(is_of(each, windows[1::2]) for each in batch)
    assert [step for step, _ in steps] == [1, 2, 3, 4]


def scripted(monkeypatch, model, uncertain):
    """A model as unsure as `uncertain` says of (changed, windows)."""
    dense = states(model)

    def uncertainty(batch):
        state = model.network.state_dict()
        changed = any(not torch.equal(state[name], each) for name, each in dense.items())
        return torch.tensor(uncertain(changed, batch))

    hypothesis = model.hypothesis
    monkeypatch.setattr(model, "uncertainty", uncertainty)
    monkeypatch.setattr(
        model,
        "hypothesis",
        lambda window: replace(hypothesis(window), uncertainty=float(uncertainty([window])[0])),
    )


def test_what_the_other_half_does_not_confirm_is_not_used(model, windows, monkeypatch):
    draw = torch.Generator().manual_seed(0)

    def uncertain(changed, batch):
        return [float(torch.rand((), generator=draw)) if changed else 0.4 for _ in batch]

    scripted(monkeypatch, model, uncertain)
    found = evolve_front_end(model, windows, FEW)
    assert found.probability <= 0.95
    assert found.values == {}
    assert found.reason == "not confirmed on the other half"


def test_a_model_that_has_collapsed_is_not_used_however_sure_it_is(model, windows, monkeypatch):
    plain = hear(model, windows[1::2])
    nothing = Heard(tuple(replace(each, text="", uncertainty=0.0) for each in plain.hypotheses))
    answers = iter([plain, nothing])
    monkeypatch.setattr(module, "hear", lambda *args: next(answers))
    found = evolve_front_end(model, windows, FEW)
    assert found.probability == 1.0
    assert found.values == {}
    assert "writes 0 characters" in found.reason


def test_the_same_seed_gives_the_same_front_end(model, windows):
    one, again, other = (evolve_front_end(model, windows, FEW, seed=seed) for seed in (1, 1, 2))
    assert one.uncertainty == again.uncertainty != other.uncertainty
    assert all(torch.equal(one.values[name], again.values[name]) for name in one.values)


def test_every_value_is_taken_on_some_seconds_of_audio_and_counted(model, windows):
    found = evolve_front_end(model, windows, FEW)
    mine = sum(len(window) for window in windows[::2]) / model.sampling_rate
    longest = max(len(window) for window in windows) / model.sampling_rate
    least = min(DRAWN_SECONDS, 0.9 * mine)
    assert 48 * least <= found.seconds <= 48 * min(mine, DRAWN_SECONDS + 16 * longest) * (1 + 1e-9)


def test_windows_of_about_one_length_run_together_cut_to_the_shortest(model):
    windows = [torch.arange(float(n)) for n in (8000, 8100, 8479, 8481, 20_000)]
    batches = module._batches(model, windows)
    assert [tuple(batch.shape) for batch in batches] == [(3, 8000), (1, 8481), (1, 20_000)]
    many = module._batches(model, [torch.ones(400)] * 20)
    assert [len(batch) for batch in many] == [16, 4]


def test_one_window_and_models_without_ctc_are_refused(model, windows, tiny_whisper_folder):
    with pytest.raises(PruningError, match=r"two windows of audio or more.*found 1"):
        evolve_front_end(model, windows[:1])
    whisper = load_speech_model(tiny_whisper_folder, device="cpu")
    with pytest.raises(PruningError, match=r"whisper model.*cannot be evolved.*CTC"):
        evolve_front_end(whisper, windows)


def test_it_stops_when_asked_and_leaves_the_model_as_it_was(model, windows):
    before = states(model)
    with pytest.raises(Interrupted, match="step 1 of 4 of evolving the front end"):
        evolve_front_end(model, windows, FEW, listener=Listener(stop=lambda: True))
    assert_unchanged(model, before)


def test_gains_at_the_origin_change_nothing(model):
    gains = Gains(model.network, model.gains)
    state = model.network.state_dict()
    for name, value in gains.values(torch.zeros(gains.dimensions)).items():
        assert torch.equal(value, state[name])


def test_it_is_stored_and_merged_like_any_other_change(model, utterances, tmp_path, monkeypatch):
    evolved = module.evolve_front_end

    def quickly(*args, **options):
        return evolved(*args, FEW, **options)

    monkeypatch.setattr("fpspeech.adaptation.evolve_front_end", quickly)
    config = Config(pruning=PruningConfig(sparsity=0.5), evolve=True)
    personal = personalize(model, utterances, config)
    assert personal.report["evolution"]["evolved"] is True
    personal.save(tmp_path / "personal")
    loaded = Personal.load(tmp_path / "personal")
    window = next(iter(WindowStream(model, utterances)))
    with loaded.apply(model):
        expected = model.logits(window)
    merge(loaded, model, tmp_path / "merged")
    stock = load_speech_model(tmp_path / "merged", device="cpu")
    torch.testing.assert_close(stock.logits(window), expected)
    assert math.isfinite(float(expected.sum()))


def test_behind_a_normalisation_it_goes_on_from_it(model, utterances, monkeypatch):
    """What is evolved is the normalised front end, and both are in force in the end."""
    evolved = module.evolve_front_end
    started_from = []

    def quickly(network, *args, **options):
        started_from.append(states(network))
        return evolved(network, *args, FEW, **options)

    monkeypatch.setattr("fpspeech.adaptation.evolve_front_end", quickly)
    generic = find_generic(model, None)
    layers = select_layers_of(model, Config()).layers
    dense = states(model)
    config = Config(normalize="features=1,layer0=1", evolve=True)
    found = adapt_to(model, layers, utterances, config, generic=generic)
    normalized = normalize(
        model, WindowStream(model, utterances), Normalization(config.strengths), generic
    )
    (start,) = started_from
    for name, value in normalized.values.items():
        assert torch.equal(start[name], value)
    both = {**normalized.values, **found.normalized.values}
    assert set(found.normalized.values) == set(both)
    assert found.account["normalization"]["used"] == {"features": 1.0, "layer0": 1.0}
    assert found.account["evolution"]["evolved"] is True
    late = "wav2vec2.encoder.layers.0.layer_norm.weight"  # normalised, and not evolved
    assert torch.equal(found.normalized.values[late], normalized.values[late])
    assert_unchanged(model, dense)
