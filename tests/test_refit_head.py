"""The output layer refitted behind pruned layers: what changes, what is stored, and where not."""

from dataclasses import replace

import pytest
import torch
from unchanged import assert_unchanged, states

from fpspeech import Config, Personal, PruningConfig, load_speech_model, merge
from fpspeech import refit_head as module
from fpspeech.adaptation import adapt_to
from fpspeech.auto_sparsity import find_sparsity
from fpspeech.corpora import read_utterances
from fpspeech.generic import measure_generic
from fpspeech.listening import Interrupted, Listener, WindowStream
from fpspeech.normalize import Normalized
from fpspeech.personalize_speech import personalize, select_layers_of
from fpspeech.pruning import PruningError
from fpspeech.refit_head import DenseAnswers

LAYER = {"lm_head.weight", "lm_head.bias"}
CONFIG = Config(PruningConfig(sparsity=0.6, score="wanda", update="none"))


@pytest.fixture(params=["tiny_group", "tiny_layer"])
def model(request):
    return load_speech_model(request.getfixturevalue(request.param), device="cpu")


@pytest.fixture
def utterances(speech):
    return read_utterances(speech, speaker="ann")[:5]


def adapted(model, utterances, config=CONFIG, **named):
    return adapt_to(model, select_layers_of(model, config).layers, utterances, config, **named)


def divergence(model, windows, dense):
    """KL from the dense posteriors, frames that write and frames that do not half each."""
    kls, writes = [], []
    for window, said in zip(windows, dense, strict=True):
        found = model.log_posteriors([window])[0]
        kls.append((said.exp() * (said - found)).sum(-1))
        writes.append(said.argmax(-1) != model.blank)
    kl, written = torch.cat(kls), torch.cat(writes)
    if not 0 < written.sum() < len(written):
        return float(kl.mean())
    return float((kl[written].mean() + kl[~written].mean()) / 2)


def test_the_pruned_model_says_more_nearly_what_the_dense_one_says(model, utterances):
    before = states(model)
    windows = list(WindowStream(model, utterances))
    dense = [model.log_posteriors([each])[0] for each in windows]
    adaptation = adapted(model, utterances)
    plain = adaptation.prune(replace(CONFIG, refit_head=False))
    refitted = adaptation.prune(CONFIG)
    assert_unchanged(model, before)

    assert set(refitted.values) - set(plain.values) == LAYER
    assert all(torch.equal(refitted.masks[name], mask) for name, mask in plain.masks.items())
    said = refitted.account["refit"]["divergence"]
    with adaptation.apply(plain):
        assert divergence(model, windows, dense) == pytest.approx(said[0], rel=1e-3)
    with adaptation.apply(refitted):
        assert divergence(model, windows, dense) == pytest.approx(said[1], rel=1e-3)
    assert said[1] < 0.9 * said[0]


def test_it_is_done_unless_it_is_not_wanted(model, utterances):
    assert Config().refit_head
    found = personalize(model, utterances, replace(CONFIG, refit_head=False))
    assert not LAYER & set(found.values)
    assert "refit" not in found.report


def test_a_personal_model_carries_the_layer(model, utterances, tmp_path):
    personal = personalize(model, utterances, CONFIG)
    personal.save(tmp_path / "personal")
    loaded = Personal.load(tmp_path / "personal")
    assert loaded.report["refit"] == personal.report["refit"]
    with loaded.apply(model):
        torch.testing.assert_close(model.network.lm_head.weight, personal.values["lm_head.weight"])
    merge(loaded, model, tmp_path / "merged")
    again = load_speech_model(tmp_path / "merged", device="cpu")
    torch.testing.assert_close(again.network.lm_head.bias, personal.values["lm_head.bias"])


def test_the_dense_model_is_asked_once_for_all_sparsities(model, utterances, monkeypatch):
    made = []
    monkeypatch.setattr(
        "fpspeech.adaptation.DenseAnswers",
        lambda *given: made.append(given) or DenseAnswers(*given),
    )
    adaptation = adapted(model, utterances)
    for sparsity in (0.3, 0.6):
        adaptation.prune(replace(CONFIG, pruning=replace(CONFIG.pruning, sparsity=sparsity)))
    assert len(made) == 1


def test_the_answers_are_those_of_the_normalised_and_tuned_model(model, utterances, speech):
    generic = measure_generic(model, read_utterances(speech, speaker="ben")[:3])
    config = replace(CONFIG, normalize="features=1")
    adaptation = adapted(model, utterances, config, generic=generic)
    tuned = {"lm_head.bias": model.network.lm_head.bias.detach() + 0.5}
    values = {**adaptation.normalized.values, **tuned}
    adaptation.normalized = replace(adaptation.normalized, values=values)
    windows = list(WindowStream(model, utterances))
    with Normalized(values).apply(model):
        dense = [model.log_posteriors([each])[0] for each in windows]
    found = adaptation.prune(config)
    with adaptation.apply(found):
        left = divergence(model, windows, dense)
    assert left == pytest.approx(found.account["refit"]["divergence"][1], rel=1e-3)
    assert not torch.equal(found.values["lm_head.bias"], tuned["lm_head.bias"])


def test_nothing_pruned_is_nothing_to_refit(model, utterances):
    none = replace(CONFIG, pruning=replace(CONFIG.pruning, sparsity=0.0))
    adaptation = adapted(model, utterances, none)
    found = adaptation.prune(none)
    assert not LAYER & set(found.values)
    assert found.account == {}


def test_what_is_said_of_it_belongs_to_its_pruning_alone(model, utterances):
    adaptation = adapted(model, utterances)
    assert "refit" in adaptation.prune(CONFIG).account
    assert adaptation.prune(replace(CONFIG, refit_head=False)).account == {}
    assert adaptation.account == {}


def test_in_sequential_order_too(model, utterances):
    config = replace(CONFIG, pruning=replace(CONFIG.pruning, order="sequential"))
    adaptation = adapted(model, utterances, config)
    found = adaptation.prune(config)
    assert set(found.values) >= LAYER
    before, after = found.account["refit"]["divergence"]
    assert after < before


def test_a_layer_that_is_pruned_itself_stays_as_it_was_pruned(model, utterances):
    config = replace(CONFIG, default_exclusions=False)
    adaptation = adapted(model, utterances, config)
    found = adaptation.prune(config)
    assert "lm_head" in found.masks
    assert not LAYER & set(found.values)
    assert found.account == {}


def test_a_layer_without_a_bias_gets_none(model, utterances):
    model.network.lm_head.bias = None
    found = adapted(model, utterances).prune(CONFIG)
    assert LAYER & set(found.values) == {"lm_head.weight"}


def test_a_whisper_has_no_such_layer(tiny_whisper_folder, utterances):
    whisper = load_speech_model(tiny_whisper_folder, device="cpu")
    found = personalize(whisper, utterances[:2], CONFIG)
    assert "refit" not in found.report
    with pytest.raises(PruningError, match="no output layer of frames: expected a CTC model"):
        DenseAnswers(whisper, WindowStream(whisper, utterances[:1]))


def test_it_can_be_stopped(model, utterances):
    before = states(model)
    windows = list(WindowStream(model, utterances))
    with pytest.raises(Interrupted):
        DenseAnswers(model, windows, Listener(stop=lambda: True))
    stop = []
    answers = DenseAnswers(model, windows, Listener(stop=lambda: bool(stop)))
    stop.append(True)
    with pytest.raises(Interrupted):
        answers.refit_head()
    assert_unchanged(model, before)


def test_it_listens_to_minutes_at_most(model, utterances, monkeypatch):
    windows = list(WindowStream(model, utterances))
    monkeypatch.setattr(module, "MOST_SECONDS", len(windows[0]) / model.sampling_rate)
    assert len(DenseAnswers(model, windows).log_posteriors) == 1


def test_an_automatic_sparsity_reports_the_layer_that_was_chosen(model, utterances, monkeypatch):
    reasons = iter([None, "too much"])
    monkeypatch.setattr("fpspeech.auto_sparsity.collapsed", lambda heard, dense: next(reasons))
    monkeypatch.setattr("fpspeech.auto_sparsity.MOST_DIVERGENCE", 1e9)
    monkeypatch.setattr("fpspeech.auto_sparsity.LEAST_AGREEMENT", -1e9)
    monkeypatch.setattr("fpspeech.auto_sparsity.MOST_INCONSISTENT", 1e9)
    adaptation = adapted(model, utterances[:3])
    found, pruned = find_sparsity(adaptation, CONFIG, utterances[3:], levels=(0.3, 0.9))
    assert found.sparsity == 0.3
    windows = list(WindowStream(model, utterances[:3]))
    dense = [model.log_posteriors([each])[0] for each in windows]
    with adaptation.apply(pruned):
        left = divergence(model, windows, dense)
    assert left == pytest.approx(pruned.account["refit"]["divergence"][1], rel=1e-3)
