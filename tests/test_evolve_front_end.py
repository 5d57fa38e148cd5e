"""The front end evolved: what is tuned, what confirms it, and what it never sees."""

import json
import math
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from unchanged import assert_unchanged, states

from fpspeech import Config, Personal, PruningConfig, load_speech_model, merge
from fpspeech import evolve_front_end as module
from fpspeech.adaptation import adapt_to
from fpspeech.corpora import read_utterances
from fpspeech.demo import demo_folder, demo_model
from fpspeech.evolve_front_end import DRAWN_SECONDS, evolve_front_end
from fpspeech.generic import find_generic
from fpspeech.listening import Interrupted, Listener, WindowStream
from fpspeech.normalize import Normalization, normalize
from fpspeech.personalize_speech import personalize, select_layers_of
from fpspeech.pruning import PruningError, search
from fpspeech.pruning.evolution import Evolution
from fpspeech.pruning.gains import Gains
from fpspeech.pruning.own_words import Spelling, as_shares, expected_loss, fitted, own_words
from fpspeech.pruning.search import SURE
from fpspeech.pruning.uncertainty import uncertainty
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


@pytest.fixture
def confirmed(monkeypatch):
    """The other half always says yes, so that a few steps on a few recordings count."""
    losses = cycle([1.0, 0.5])

    def heard(model, windows, *, words):
        return replace(hear(model, windows), losses=(next(losses),) * len(windows))

    monkeypatch.setattr(module, "hear", heard)


def test_the_front_end_alone_is_tuned_and_the_model_is_left_as_it_was(model, windows, confirmed):
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


def test_it_fits_recordings_better_that_it_did_not_evolve_on(model):
    everything = [u for u in read_utterances(demo_folder(), speaker="aria") if u.split == "adapt"]
    windows = list(WindowStream(model, everything))
    found = evolve_front_end(model, windows, Evolution(steps=5, pairs=12))
    before, after = found.loss
    assert after < 0.95 * before
    assert found.probability > 0.5
    # So few steps may or may not be enough to count.
    report = json.loads(json.dumps(found.as_json()))
    assert report["evolved"] is bool(found.values)
    assert report["reason"] == (None if found.values else "not confirmed on the other half")


def test_a_half_that_confirms_is_never_evolved_on(model, windows, monkeypatch):
    """While it descends, the model hears nothing but the beginnings of every other window."""
    heard = []
    log_posteriors = model.log_posteriors

    def remembered(batch):
        heard.append(list(batch))
        return log_posteriors(batch)

    monkeypatch.setattr(model, "log_posteriors", remembered)
    steps = []
    listener = Listener(tuned=lambda what, step, steps_: steps.append((step, len(heard))))
    evolve_front_end(model, windows, FEW, listener=listener)
    last = steps[-1][1]

    def is_of(window, half):
        return any(torch.equal(window, each[: len(window)]) for each in half)

    for batch in heard[:last]:
        assert all(is_of(each, windows[::2]) for each in batch)
    assert heard[last:]
    for batch in heard[last:]:
        assert all(is_of(each, windows[1::2]) for each in batch)
    assert [step for step, _ in steps] == [1, 2, 3, 4]


BETTER, WORSE = (1.0, 0.5), (1.0, 1.5)  # losses before and after
PERHAPS = (1.0, (0.4, 1.5, 0.6, 1.2))  # better in most draws, not in nearly all


@pytest.mark.parametrize(
    ("losses", "uncertainty", "entropy", "used"),
    [
        (BETTER, 1.0, 1.0, True),
        (BETTER, 1.1, 1.1, True),
        (PERHAPS, 0.9, 0.9, True),
        (PERHAPS, 0.9, 0.99, False),
        (PERHAPS, 1.0, 0.9, False),
        (WORSE, 0.5, 0.5, False),
    ],
)
def test_it_counts_if_the_other_half_fits_better_for_sure_or_likely_and_is_surer(
    model, windows, monkeypatch, losses, uncertainty, entropy, used
):
    plain = hear(model, windows[1::2])
    tuned = Heard(
        tuple(
            replace(
                each, uncertainty=uncertainty * each.uncertainty, entropy=entropy * each.entropy
            )
            for each in plain.hypotheses
        )
    )
    n_windows = len(plain.hypotheses)
    before, after = (each if isinstance(each, tuple) else (each,) * n_windows for each in losses)
    answers = iter([replace(plain, losses=before), replace(tuned, losses=after)])
    monkeypatch.setattr(module, "hear", lambda *args, **options: next(answers))
    found = evolve_front_end(model, windows, Evolution(steps=1, pairs=1))
    if losses is PERHAPS:
        assert 0.5 < found.probability < SURE
    assert bool(found.values) == used
    assert found.reason == (None if used else "not confirmed on the other half")


def test_one_window_of_a_great_loss_does_not_decide():
    """Nine windows of ten are fitted a third better, and one that fits nothing a little worse."""
    before, after = [3.0] * 9 + [200.0], [2.0] * 9 + [215.0]
    plainly = search.confirmed(after, before, wanted=SURE, seed=0)
    weighed = search.confirmed(*as_shares(after, before), wanted=SURE, seed=0)
    assert not plainly[0]
    assert weighed[0]
    assert not search.confirmed(*as_shares(before, after), wanted=SURE, seed=0)[0]


def test_a_model_that_has_collapsed_is_not_used_however_well_it_fits(model, windows, monkeypatch):
    plain = hear(model, windows[1::2], words=True)
    nothing = tuple(replace(each, text="") for each in plain.hypotheses)
    answers = iter([plain, Heard(nothing, losses=(0.0,) * len(nothing))])
    monkeypatch.setattr(module, "hear", lambda *args, **options: next(answers))
    found = evolve_front_end(model, windows, FEW)
    assert found.probability == 1.0
    assert found.values == {}
    assert "writes 0 characters" in found.reason


def test_what_is_lowered_weighs_the_loss_by_what_it_was_and_adds_the_uncertainty():
    spelling = Spelling(blank=0, delimiter=None)
    draw = torch.Generator().manual_seed(0)
    heard = [torch.randn(9, 5, generator=draw).log_softmax(-1) for _ in range(3)]
    places = own_words(heard, spelling)
    said = module.Said(dict(enumerate(places)), {0: 2.0, 1: 4.0, 2: 3.0}, 0.7, spelling)
    found = said.misfit(torch.stack([heard[2], heard[0]]), (2, 0)).tolist()
    for value, number, scale in zip(found, (2, 0), (3.0 + 3.0, 2.0 + 3.0), strict=True):
        loss = float(expected_loss(heard[number][None], [places[number]], spelling))
        unsure = float(uncertainty(heard[number], 0))
        expected = 0.7 * 0.7 * loss / scale + module.UNCERTAINTY * unsure
        assert value == pytest.approx(expected, rel=1e-5)


def test_words_count_the_more_they_recur(model, windows):
    batches = module._batches(model, windows)
    said = module._listened(model, batches, model.spelling)
    kinds = {word for places in said.places.values() for word in places.words}
    n_words = sum(len(set(places.places.tolist())) for places in said.places.values())
    assert said.recurring == pytest.approx((n_words - len(kinds)) / n_words)
    assert 0 < said.recurring < 1
    twice = [*windows, *windows]
    again = module._listened(model, module._batches(model, twice), model.spelling)
    assert again.recurring > said.recurring


def test_what_is_said_is_found_anew_as_the_model_hears_better(model, windows, monkeypatch):
    """At the start and after every fourth step but the last, in the half that is evolved on."""
    found, points = [], []

    def remembered(recordings, spelling):
        found.append(len(recordings))
        points.append(states(model)["wav2vec2.feature_projection.layer_norm.weight"])
        return fitted(recordings, spelling)

    monkeypatch.setattr(module, "fitted", remembered)
    evolve_front_end(model, windows, Evolution(steps=8, pairs=1))
    assert found == [len(windows[::2])] * 2
    assert torch.equal(points[0], states(model)["wav2vec2.feature_projection.layer_norm.weight"])
    assert not torch.equal(points[0], points[1])


def test_the_same_seed_gives_the_same_front_end(model, windows, confirmed):
    one, again, other = (evolve_front_end(model, windows, FEW, seed=seed) for seed in (1, 1, 2))
    assert one.entropy == again.entropy != other.entropy
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
    assert [tuple(batch.windows.shape) for batch in batches] == [(3, 8000), (1, 8481), (1, 20_000)]
    assert [batch.numbers for batch in batches] == [(0, 1, 2), (3,), (4,)]
    many = module._batches(model, [torch.ones(400)] * 20)
    assert [len(batch.numbers) for batch in many] == [16, 4]


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


def test_it_is_stored_and_merged_like_any_other_change(
    model, utterances, tmp_path, monkeypatch, confirmed
):
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


def test_behind_a_normalisation_it_goes_on_from_it(model, utterances, monkeypatch, confirmed):
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
