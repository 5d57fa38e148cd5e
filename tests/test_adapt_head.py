"""The output layer fitted to words that recur: what is changed, what confirms it, and what not."""

import json
from types import SimpleNamespace

import jiwer
import pytest
import torch
from unchanged import assert_unchanged, states

from fpspeech import Config, Personal, PruningConfig, load_speech_model, merge
from fpspeech import adapt_head as module
from fpspeech.adapt_head import ROUNDS, adapt_head
from fpspeech.adaptation import adapt_to
from fpspeech.corpora import read_utterances
from fpspeech.demo import demo_folder, demo_model
from fpspeech.generic import find_generic
from fpspeech.listening import Interrupted, Listener, WindowStream
from fpspeech.personalize_speech import personalize, select_layers_of
from fpspeech.pruning import PruningError, head_fit
from fpspeech.pruning.own_words import expected_loss, fitted
from fpspeech.signals import Heard

AGAIN = 6  # times that each word is said


@pytest.fixture(scope="module")
def said():
    """The three recordings with the shortest texts, as they are."""
    utterances = read_utterances(demo_folder(), speaker="felix", with_text=True)
    return sorted((u for u in utterances if u.split == "test"), key=lambda u: len(u.text))[:3]


@pytest.fixture(scope="module")
def windows(said):
    """Said again and again, each time a little differently."""
    model = load_speech_model(demo_model(), device="cpu")
    draw = torch.Generator().manual_seed(0)
    found = []
    for window in list(WindowStream(model, said)) * AGAIN:
        loudness = window.square().mean().sqrt()
        found.append(window + 0.05 * loudness * torch.randn(window.shape, generator=draw))
    return found


@pytest.fixture(scope="module")
def model():
    """The demo's model with an output layer that is somewhat off."""
    found = load_speech_model(demo_model(), device="cpu")
    draw = torch.Generator().manual_seed(1)
    weight = found.network.lm_head.weight
    with torch.no_grad():
        weight += 0.4 * weight.std() * torch.randn(weight.shape, generator=draw)
    return found


@pytest.fixture(scope="module")
def found(model, windows):
    before = states(model)
    adapted = adapt_head(model, windows)
    assert_unchanged(model, before)
    return adapted


@pytest.fixture
def quick(monkeypatch):
    """A few steps do where what they come to does not matter."""
    monkeypatch.setattr(head_fit, "STEPS", 3)


def wer(model, windows, said):
    truth = [each.text.upper() for each in said] * AGAIN
    return jiwer.wer(truth, [model.transcribe([window]).text for window in windows])


def test_words_that_recur_are_heard_better(model, windows, said, found):
    assert found.reason is None
    assert set(found.values) == {"lm_head.weight", "lm_head.bias"}
    plain = wer(model, windows, said)
    with module.Normalized(found.values).apply(model):
        assert wer(model, windows, said) < 0.85 * plain
    report = json.loads(json.dumps(found.as_json()))
    assert report["adapted"] is True
    assert report["reason"] is None
    assert 1 <= report["rounds"] <= ROUNDS
    assert report["loss_other_half"][1] < report["loss_other_half"][0]


def test_the_losses_are_of_the_other_half_in_what_the_model_as_it_was_took_it_for(
    model, windows, found
):
    heard = [model.log_posteriors([window])[0] for window in windows]
    places, _ = fitted(heard, model.spelling)
    losses = [
        float(expected_loss(each[None], [here], model.spelling))
        for each, here in zip(heard[1::2], places[1::2], strict=True)
    ]
    assert found.loss[0] == pytest.approx(sum(losses) / len(losses), rel=1e-3)


def test_a_half_that_confirms_is_not_fitted_before(model, windows, monkeypatch, quick):
    sizes = []
    fit = module.fitted_heads

    def watched(recordings, head, spelling, rounds):
        sizes.append((len(recordings), rounds))
        return fit(recordings, head, spelling, rounds)

    monkeypatch.setattr(module, "fitted_heads", watched)
    found = adapt_head(model, windows)
    assert sizes == [(len(windows) // 2, ROUNDS), (len(windows), found.rounds)]


def test_where_words_do_not_recur_nothing_is_changed():
    model = load_speech_model(demo_model(), device="cpu")
    utterances = [u for u in read_utterances(demo_folder(), speaker="aria") if u.split == "adapt"]
    found = adapt_head(model, WindowStream(model, utterances[:8]))
    assert found.reason == "not confirmed on the other half"
    assert not found.values
    assert found.as_json()["adapted"] is False


@pytest.mark.parametrize(("share", "used"), [(0.71, True), (0.69, False)])
def test_who_is_heard_too_badly_is_left_alone(model, windows, monkeypatch, quick, share, used):
    monkeypatch.setattr(module, "as_written", lambda *given: share)
    found = adapt_head(model, windows)
    assert found.as_written == share
    assert used or found.rounds == 0
    assert bool(found.values) is used
    assert (found.reason is None) is used
    assert used or found.reason == "only 69% of the words it writes are words of the speaker"


def test_a_collapse_is_not_taken(model, windows, monkeypatch, quick):
    monkeypatch.setattr(module, "collapsed", lambda candidate, dense: "it writes nothing")
    found = adapt_head(model, windows)
    assert (found.reason, found.values) == ("it writes nothing", {})


def test_the_guard_compares_the_fitted_model_with_the_plain_one(model, windows, monkeypatch, quick):
    compared = []

    def guard(candidate: Heard, dense: Heard):
        compared.append((candidate.text, dense.text))

    monkeypatch.setattr(module, "collapsed", guard)
    found = adapt_head(model, windows)
    ((tuned, plain),) = compared
    assert plain == "\n".join(model.transcribe([window]).text for window in windows)
    with module.Normalized(found.values).apply(model):
        assert tuned == "\n".join(model.transcribe([window]).text for window in windows)


def test_a_layer_without_a_bias_gets_none(windows, quick):
    model = load_speech_model(demo_model(), device="cpu")
    with torch.no_grad():
        model.network.lm_head.weight += 0.02
    model.network.lm_head.bias = None
    found = adapt_head(model, windows)
    assert set(found.values) <= {"lm_head.weight"}


def test_it_refuses_what_it_cannot_do(model, windows, tiny_whisper_folder):
    with pytest.raises(PruningError, match="output layer cannot be adapted: expected a CTC model"):
        adapt_head(load_speech_model(tiny_whisper_folder, device="cpu"), windows)
    with pytest.raises(PruningError, match=r"two windows of audio or more.*found 1"):
        adapt_head(model, windows[:1])
    with pytest.raises(Interrupted):
        adapt_head(model, windows, listener=Listener(stop=lambda: True))
    assert not model.network.lm_head._forward_pre_hooks


def test_its_progress_is_told_and_it_stops_while_fitting(model, windows, quick):
    told = []
    found = adapt_head(model, windows, listener=Listener(tuned=lambda *step: told.append(step)))
    assert found.rounds > 0
    steps = [step for _, step, _ in told]
    assert {(what, of) for what, _, of in told} == {("output layer", 2 * ROUNDS)}
    assert steps[:ROUNDS] == list(range(1, ROUNDS + 1))
    assert steps == sorted(steps)
    assert steps[-1] == 2 * ROUNDS
    assert len(steps) == ROUNDS + found.rounds + 1

    before = states(model)
    listener = Listener(tuned=lambda *step: told.append(step), stop=lambda: bool(told))
    told.clear()
    with pytest.raises(Interrupted, match="while fitting the output layer"):
        adapt_head(model, windows, listener=listener)
    assert len(told) == 1
    assert_unchanged(model, before)


FRONT = "wav2vec2.feature_projection.layer_norm.weight"
TUNED, FIRST, BEHIND = 1.5, 0.25, 0.5


@pytest.mark.parametrize(
    ("before", "evolves", "steps", "weight"),
    [
        (True, True, ["head", "evolve", "head"], BEHIND),
        (True, False, ["head", "evolve"], FIRST),  # nothing is tuned: it stays as it was fitted
        (False, True, ["head", "evolve"], None),  # what was no good before is not after it
    ],
)
def test_it_is_fitted_behind_the_evolved_front_end_where_that_was_good_before(
    model, monkeypatch, before, evolves, steps, weight
):
    utterances = [u for u in read_utterances(demo_folder(), speaker="felix") if u.split == "adapt"]
    plain = states(model)
    seen = []

    def evolved(model, windows, **options):
        seen.append("evolve")
        values = {FRONT: plain[FRONT] * TUNED} if evolves else {}
        return SimpleNamespace(values=values, as_json=lambda: {"evolved": evolves})

    def fitted_head(model, windows, **options):
        seen.append("head")
        tuned = not torch.equal(model.network.state_dict()[FRONT], plain[FRONT])
        given = torch.full_like(plain["lm_head.weight"], BEHIND if tuned else FIRST)
        values = {"lm_head.weight": given} if before else {}
        return SimpleNamespace(values=values, as_json=lambda: {"tuned": tuned})

    monkeypatch.setattr("fpspeech.adaptation.evolve_front_end", evolved)
    monkeypatch.setattr("fpspeech.adaptation.adapt_head", fitted_head)
    pruning = PruningConfig(sparsity=0.5, update="none")
    config = Config(pruning, evolve=True, adapt_head=True, refit_head=False)
    layers = select_layers_of(model, config).layers
    found = adapt_to(model, layers, utterances[:2], config)
    assert seen == steps
    assert found.account == {
        "evolution": {"evolved": evolves},
        "head": {"tuned": steps[-1] == "head"},
    }
    with found.apply(found.prune(config)):
        state = model.network.state_dict()
        expected = plain["lm_head.weight"] if weight is None else torch.tensor(weight)
        assert (state["lm_head.weight"] == expected).all()
        assert torch.equal(state[FRONT], plain[FRONT] * (TUNED if evolves else 1))
    assert_unchanged(model, plain)


@pytest.mark.parametrize(("before", "seen"), [(True, ["plain", "normalised"]), (False, ["plain"])])
def test_nor_is_it_fitted_behind_normalised_features_where_it_was_no_good_before(
    monkeypatch, before, seen
):
    model = load_speech_model(demo_model(), device="cpu")
    utterances = [u for u in read_utterances(demo_folder(), speaker="felix") if u.split == "adapt"]
    norm = "wav2vec2.feature_projection.layer_norm.bias"
    plain = states(model)
    heard = []

    def fitted_head(model, windows, **options):
        same = torch.equal(model.network.state_dict()[norm], plain[norm])
        heard.append("plain" if same else "normalised")
        values = {"lm_head.bias": plain["lm_head.bias"] + 1} if before else {}
        return SimpleNamespace(values=values, as_json=lambda: {})

    monkeypatch.setattr("fpspeech.adaptation.adapt_head", fitted_head)
    config = Config(PruningConfig(update="none"), normalize="features=1", adapt_head=True)
    layers = select_layers_of(model, config).layers
    found = adapt_to(model, layers, utterances[:2], config, generic=find_generic(model, None))
    assert heard == seen
    assert ("lm_head.bias" in found.normalized.values) is before
    assert norm in found.normalized.values


def test_it_is_not_fitted_unasked(model, monkeypatch):
    utterances = [u for u in read_utterances(demo_folder(), speaker="felix") if u.split == "adapt"]
    monkeypatch.setattr("fpspeech.adaptation.adapt_head", None)
    config = Config(PruningConfig(update="none"))
    found = adapt_to(model, select_layers_of(model, config).layers, utterances[:1], config)
    assert found.account == {}


def test_a_personal_model_carries_the_fitted_layer(model, found, monkeypatch, tmp_path):
    utterances = [u for u in read_utterances(demo_folder(), speaker="felix") if u.split == "adapt"]
    monkeypatch.setattr(
        "fpspeech.adaptation.adapt_head",
        lambda given, stream, **options: found,
    )
    pruning = PruningConfig(sparsity=0.3, update="none")
    config = Config(pruning, adapt_head=True, refit_head=False)
    personal = personalize(model, utterances[:2], config)
    assert personal.report["head"]["adapted"]
    expected = found.values["lm_head.weight"]
    personal.save(tmp_path / "personal")
    loaded = Personal.load(tmp_path / "personal")
    with loaded.apply(model):
        torch.testing.assert_close(model.network.lm_head.weight, expected, atol=2e-3, rtol=2e-3)
    merge(loaded, model, tmp_path / "merged")
    again = load_speech_model(tmp_path / "merged", device="cpu")
    torch.testing.assert_close(again.network.lm_head.weight, expected, atol=2e-3, rtol=2e-3)
