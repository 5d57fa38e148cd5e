"""The search for a normalisation: what it takes, what it refuses, and what it never sees."""

import json

import pytest
import torch

from fpspeech import search_normalization as module
from fpspeech import signals
from fpspeech.corpora import read_utterances
from fpspeech.demo import demo_folder, demo_model
from fpspeech.generic import measure_generic
from fpspeech.listening import WindowStream
from fpspeech.models import load_speech_model
from fpspeech.models.speech_model import Hypothesis
from fpspeech.normalize import normalize
from fpspeech.pruning import FeatureObserver, PruningError
from fpspeech.pruning.own_words import fitted
from fpspeech.pruning.uncertainty import uncertainty
from fpspeech.search_normalization import STRENGTHS, search_normalization


@pytest.fixture(scope="module")
def model():
    return load_speech_model(demo_model(), device="cpu")


def recordings(speaker, count):
    return [u for u in read_utterances(demo_folder(), speaker=speaker) if u.split == "adapt"][
        :count
    ]


@pytest.fixture(scope="module")
def speakers():
    return sorted({u.speaker for u in read_utterances(demo_folder())})


@pytest.fixture(scope="module")
def generic(model, speakers):
    others = [each for speaker in speakers[1:4] for each in recordings(speaker, 2)]
    return measure_generic(model, others)


@pytest.fixture(scope="module")
def windows(model, speakers):
    return list(WindowStream(model, recordings(speakers[0], 6)))


@pytest.fixture(params=["uncertainty", "words", "entropy"])
def objective(request):
    return request.param


class Script:
    """Hypotheses by whether the model is normalised and which half the window is of.

    Uncertainties and losses of words are as the entropies.
    entropies: (dense, normalised) of the searched half, then of the other; text: of a normalised
    model on the searched half and on the other.
    """

    def __init__(self, monkeypatch, model, windows, entropies, text=("some words", "some words")):
        self.dense = {name: each.clone() for name, each in model.network.state_dict().items()}
        self.model, self.windows = model, windows
        self.entropies, self.text = entropies, text
        self.asked = []
        monkeypatch.setattr(model, "hypothesis", self.hypothesis)
        monkeypatch.setattr(signals, "fitted", lambda heard, _: ([], [*map(float, heard)]))

    def hypothesis(self, window, along=None):
        state = self.model.network.state_dict()
        changed = any(not torch.equal(state[name], each) for name, each in self.dense.items())
        number = next(n for n, each in enumerate(self.windows) if each is window)
        half = number % 2
        self.asked.append((half, changed))
        entropy = self.entropies[half][changed]
        entropy = entropy[number // 2] if isinstance(entropy, tuple) else entropy
        text = self.text[half] if changed else "some words"
        return Hypothesis(
            text, (1, 2), -1.0, 10 * entropy, 10, torch.tensor(entropy), uncertainty=entropy
        )


def assert_nothing_changed(model, dense):
    state = model.network.state_dict()
    assert all(torch.equal(state[name], each) for name, each in dense.items())


def test_what_is_better_on_both_halves_is_used(model, windows, generic, monkeypatch, objective):
    script = Script(monkeypatch, model, windows, ((1.0, 0.5), (1.0, 0.7)))
    found = search_normalization(model, windows, generic, budget=4, minimise=objective)
    assert found.reason is None
    assert found.normalization == found.found
    # Every normalisation is as good here, so the first that was tried stays.
    assert found.found.active == {next(iter(model.sites)): STRENGTHS[0]}
    assert found.probability == 1.0
    assert found.other_half == pytest.approx((1.0, 0.7))
    assert found.objective == objective
    assert found.searched.evaluations <= 4
    assert_nothing_changed(model, script.dense)


def test_the_other_half_is_heard_twice_only_dense_and_once_confirming(
    model, windows, generic, monkeypatch
):
    script = Script(monkeypatch, model, windows, ((1.0, 0.5), (1.0, 0.7)))
    search_normalization(model, windows, generic, budget=4)
    other = [changed for half, changed in script.asked if half == 1]
    assert other == [False] * 3 + [True] * 3
    assert script.asked[-3:] == [(1, True)] * 3


def test_what_the_other_half_does_not_confirm_is_not_used(
    model, windows, generic, monkeypatch, objective
):
    script = Script(monkeypatch, model, windows, ((1.0, 0.5), (1.0, (0.9, 1.2, 1.0))))
    found = search_normalization(model, windows, generic, budget=3, minimise=objective)
    assert found.found.active
    assert found.normalization.active == {}
    assert found.reason == "not confirmed on the other half"
    assert 0 < found.probability < 0.8
    assert found.as_json()["used"] == {}
    assert found.as_json()["reason"] == found.reason
    assert_nothing_changed(model, script.dense)


def test_what_collapses_on_the_other_half_is_not_used_however_sure(
    model, windows, generic, monkeypatch, objective
):
    Script(monkeypatch, model, windows, ((1.0, 0.5), (1.0, 0.1)), text=("some words", "a"))
    found = search_normalization(model, windows, generic, budget=3, minimise=objective)
    assert found.found.active
    assert found.normalization.active == {}
    assert found.probability == 1.0
    assert "characters where the dense model writes" in found.reason


def test_what_collapses_while_searching_is_never_found(
    model, windows, generic, monkeypatch, objective
):
    Script(monkeypatch, model, windows, ((1.0, 0.1), (1.0, 0.1)), text=("a", "some words"))
    found = search_normalization(model, windows, generic, budget=3, minimise=objective)
    assert found.found.active == found.normalization.active == {}
    assert found.reason == f"no site lowers the {objective}"
    assert [step.objective for step in found.searched.steps] == [1.0, float("inf"), float("inf")]


def test_a_gain_below_the_tolerance_is_none(model, windows, generic, monkeypatch, objective):
    Script(monkeypatch, model, windows, ((1.0, 0.995), (1.0, 0.1)))
    found = search_normalization(model, windows, generic, budget=3, minimise=objective)
    assert found.normalization.active == {}
    assert found.reason == f"no site lowers the {objective}"
    assert found.other_half == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("count", [0, 1])
def test_one_window_leaves_nothing_to_confirm_on(model, windows, generic, count, monkeypatch):
    script = Script(monkeypatch, model, windows, ((1.0, 0.5), (1.0, 0.5)))
    found = search_normalization(model, windows[:count], generic)
    assert found.normalization.active == {}
    assert "one window of audio" in found.reason
    assert script.asked == []
    # It goes into a report, and JSON has no NaN.
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["evaluations"] == 0


def test_the_moments_are_those_of_both_halves(model, windows, generic, monkeypatch):
    """They are measured, not chosen: what is used later has them, too."""
    script = Script(monkeypatch, model, windows, ((1.0, 0.5), (1.0, 0.7)))
    listened = []
    listen = model.listen

    def remember(some, counter):
        assert isinstance(counter, FeatureObserver)
        listened.extend(next(n for n, w in enumerate(windows) if w is each) % 2 for each in some)
        listen(some, counter)

    monkeypatch.setattr(model, "listen", remember)
    found = search_normalization(model, windows, generic, budget=3)
    assert found.found.active
    assert set(listened) == {0, 1}
    assert {half for half, _ in script.asked} == {0, 1}


def test_no_more_audio_than_wanted_is_searched_on(model, windows, generic, monkeypatch):
    script = Script(monkeypatch, model, windows, ((1.0, 1.0), (1.0, 1.0)))
    seconds = sum(len(each) for each in windows[:3]) / model.sampling_rate
    monkeypatch.setattr(module, "SEARCH_SECONDS", seconds - 0.01)
    search_normalization(model, windows, generic, budget=1)
    assert script.asked == [(0, False)] * 2 + [(1, False)]


def test_a_ctc_model_must_be_surer_on_the_other_half_more_than_as_often_as_not(
    model, windows, generic, monkeypatch, objective
):
    Script(monkeypatch, model, windows, ((1.0, 0.5), (1.0, (0.7, 1.2, 0.9))))
    found = search_normalization(model, windows, generic, budget=3, minimise=objective)
    assert 0.5 < found.probability < 0.95
    assert bool(found.normalization.active) == (objective == "entropy")


def test_a_real_search_is_the_same_every_time_and_its_objective_what_it_says(
    model, windows, generic, objective
):
    few = [each[: 2 * model.sampling_rate] for each in windows[:4]]
    dense = {name: each.clone() for name, each in model.network.state_dict().items()}
    first, second = (
        search_normalization(model, few, generic, budget=4, minimise=objective, full=True)
        for _ in range(2)
    )
    assert first == second
    assert_nothing_changed(model, dense)

    def value():
        if objective == "uncertainty":
            return sum(float(uncertainty(model.logits(each), model.blank)) for each in few[::2]) / 2
        if objective == "words":
            heard = [model.log_posteriors([each])[0] for each in few[::2]]
            return sum(fitted(heard, model.spelling)[1]) / 2
        heard = [model.hypothesis(each) for each in few[::2]]
        return sum(each.entropy for each in heard) / sum(each.informative for each in heard)

    assert first.searched.start_objective == pytest.approx(value())
    point = dict(first.searched.steps[1].point)
    chosen = module.Normalization(tuple(point.items()), full=True)
    with normalize(model, few, chosen, generic).apply(model):
        normalised = value()
    assert first.searched.steps[1].objective in (pytest.approx(normalised), float("inf"))


@pytest.mark.parametrize("objective", ["uncertainty", "words"])
def test_what_is_known_of_ctc_models_alone_is_refused_for_others(
    tiny_whisper_folder, windows, generic, objective
):
    whisper = load_speech_model(tiny_whisper_folder, device="cpu")
    with pytest.raises(PruningError, match=f"whisper model, of which no {objective} can be known"):
        search_normalization(whisper, windows, generic, minimise=objective)
