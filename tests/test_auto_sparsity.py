"""The sparsity that unlabeled audio allows: where the search stops, and what it listens to."""

import json
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import soundfile
import torch

import fpspeech.personalize_speech as personalizing
from fpspeech import Config, Personal, PruningConfig, load_speech_model, read_utterances
from fpspeech.auto_sparsity import LEVELS, find_sparsity
from fpspeech.corpora import Utterance, fingerprint
from fpspeech.models.speech_model import Hypothesis
from fpspeech.personalize_speech import personalize
from fpspeech.pruning import PruningError

CONFIG = Config(pruning=PruningConfig(sparsity=0.0), automatic=True)
TEXT = "turn the light on in the hall please and close the door"


@dataclass
class Fake:
    """A model and its adaptation in one: what it writes depends on the sparsity in force.

    damage: by sparsity, what is wrong with it from there on.
    """

    damage: dict[float, str]
    sampling_rate: int = 16_000
    window_seconds: float = 30.0
    sparsity: float = 0.0
    pruned: list[float] = field(default_factory=list)
    windows: list = field(default_factory=list)
    account: dict = field(default_factory=dict)

    @property
    def model(self):
        return self

    @property
    def normalized(self):
        return _Normalized(self)

    def prune(self, config):
        self.pruned.append(config.pruning.sparsity)
        return config.pruning.sparsity

    @contextmanager
    def apply(self, pruned):
        self.sparsity = pruned
        yield
        self.sparsity = 0.0

    def hypothesis(self, window, along=None):
        self.windows.append(window)
        self.references += self.normalizing
        wrong = {what for sparsity, what in self.damage.items() if sparsity <= self.sparsity}
        text, drift = TEXT, 0.01 * self.sparsity
        if "silent" in wrong:
            text = "turn"
        if "far" in wrong:
            drift = 3.0
        if "disagrees" in wrong:
            text = text.replace("light", "leght").replace("door", "deor").replace("hall", "hell")
        if "fickle" in wrong and not any(window is each for each in self.originals):
            text = "something else than it was"
        posteriors = torch.tensor([[2.0 + drift, 0.0, 0.0]] * 4).log_softmax(-1)
        return Hypothesis(text, (0,) * 4, -1.0, 1.0, 4, posteriors)

    originals: list = field(default_factory=list)
    normalizing: bool = False
    references: int = 0


@dataclass
class _Normalized:
    """Says whether the model was heard under the speaker's normalisation."""

    fake: Fake

    @contextmanager
    def apply(self, model):
        self.fake.normalizing = True
        yield
        self.fake.normalizing = False


@pytest.fixture
def utterances(speech):
    return [u for u in read_utterances(speech, speaker="ann") if u.split == "adapt"]


def search(damage, utterances, **named):
    fake = Fake(damage)
    found, pruned = find_sparsity(fake, CONFIG, utterances[:2], **named)
    return fake, found, pruned


def test_the_reference_is_the_normalised_model(utterances):
    fake, _, _ = search({0.4: "far"}, utterances)
    assert fake.references > 0
    assert not fake.normalizing


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("silent", "writes"),
        ("far", "more than 0.1 nats"),
        ("disagrees", "agrees with less than 85%"),
    ],
)
def test_it_stops_at_the_first_level_that_is_not_allowed(utterances, what, reason):
    lines = []
    fake, found, pruned = search({0.6: what}, utterances, say=lines.append)
    assert found.sparsity == pruned == 0.5
    assert fake.pruned == [0.3, 0.4, 0.5, 0.6], "nothing beyond it is tried"
    assert [level.sparsity for level in found.levels] == fake.pruned
    assert [level.reason is None for level in found.levels] == [True, True, True, False]
    assert reason in found.levels[-1].reason
    assert len(lines) == 4
    assert reason in lines[-1]
    assert json.loads(json.dumps(found.as_json()))["sparsity"] == 0.5


def test_it_stops_where_the_model_changes_its_mind(utterances, monkeypatch):
    from fpspeech import auto_sparsity

    fake = Fake({0.5: "fickle"})
    first = auto_sparsity.first_seconds

    def remembered(*arguments):
        fake.originals += first(*arguments)
        return fake.originals

    monkeypatch.setattr(auto_sparsity, "first_seconds", remembered)
    found, pruned = find_sparsity(fake, CONFIG, utterances[:2])
    assert found.sparsity == pruned == 0.4
    assert "changes its mind" in found.levels[-1].reason
    assert found.dense_consistency == 1


def test_a_better_level_behind_a_bad_one_is_not_looked_for(utterances):
    _, found, _ = search({0.3: "silent"}, utterances)
    assert found.sparsity == 0
    assert len(found.levels) == 1


def test_all_levels_allowed_gives_the_highest(utterances):
    _, found, pruned = search({}, utterances)
    assert found.sparsity == pruned == LEVELS[-1]
    assert all(level.reason is None for level in found.levels)


def test_where_none_is_allowed_nothing_is_pruned(utterances):
    fake, found, pruned = search({0.1: "far"}, utterances, levels=(0.2, 0.9))
    assert (found.sparsity, pruned) == (0, 0)
    assert fake.pruned == [0.2, 0.0]


def test_it_listens_to_the_held_out_recordings_alone(utterances):
    fake, _, _ = search({}, utterances)
    lengths = {window.numel() for window in fake.windows}
    mine = {round(16_000 * seconds) for seconds in (0.6, 0.7)}
    faster = {round(length / 1.05) for length in mine}
    assert all(min(abs(each - other) for other in mine | faster) <= 1 for each in lengths)


@pytest.mark.parametrize("levels", [(), (0.5, 0.3), (0.3, 0.3)])
def test_levels_must_rise(utterances, levels):
    with pytest.raises(PruningError, match="levels of sparsity that rise"):
        search({}, utterances, levels=levels)


def test_without_anything_to_listen_to_there_is_no_answer(tmp_path):
    with pytest.raises(PruningError, match="two recordings or more"):
        search({}, [])
    soundfile.write(tmp_path / "quiet.wav", np.zeros(16_000), 16_000)
    with pytest.raises(PruningError, match="of these 1 none can be used"):
        search({}, [Utterance("quiet", tmp_path / "quiet.wav", "ann")])


@pytest.fixture
def model(tiny_group):
    return load_speech_model(tiny_group, device="cpu")


@pytest.fixture
def spy(monkeypatch):
    """What `personalize` listened to, and what it held back."""
    seen = {}
    adapt_to, find = personalizing.adapt_to, personalizing.find_sparsity

    def adapting(*arguments, **named):
        seen["adaptation"] = adapt_to(*arguments, **named)
        return seen["adaptation"]

    def finding(adaptation, config, held_out, **named):
        seen["held_out"] = held_out
        return find(adaptation, config, held_out, **named)

    monkeypatch.setattr(personalizing, "adapt_to", adapting)
    monkeypatch.setattr(personalizing, "find_sparsity", finding)
    return seen


def test_personalize_finds_it_and_writes_it_down(model, utterances, tmp_path, spy):
    config = replace(CONFIG, pruning=PruningConfig(score="wanda", update="none"))
    personal = personalize(model, utterances, config)
    held = {fingerprint(each.audio) for each in spy["held_out"]}
    used = set(spy["adaptation"].heard.fingerprints.values())
    assert len(held) == 1
    assert len(used) == 4
    assert not held & used
    for each in held | used:
        assert personal.recordings.holds(each), "neither is a test recording"
    found = personal.report["automatic_sparsity"]
    assert personal.config.automatic
    assert personal.config.pruning.sparsity == found["sparsity"]
    assert personal.report["sparsity"] == pytest.approx(found["sparsity"], abs=0.05)
    assert [level["sparsity"] for level in found["levels"]] == list(LEVELS[: len(found["levels"])])
    personal.save(tmp_path / "ann")
    loaded = Personal.load(tmp_path / "ann")
    assert loaded.config == personal.config
    assert loaded.report["automatic_sparsity"] == json.loads(json.dumps(found))
    with loaded.apply(model):
        pass


def test_with_no_level_allowed_a_personal_model_is_the_dense_one(model, utterances, monkeypatch):
    from fpspeech import auto_sparsity

    monkeypatch.setattr(auto_sparsity, "LEAST_AGREEMENT", 1.1)
    config = replace(CONFIG, pruning=PruningConfig(score="wanda", update="none"))
    personal = personalize(model, utterances, config)
    assert personal.config.pruning.sparsity == 0
    assert all(bool(mask.all()) for mask in personal.masks.values())
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with personal.apply(model):
        state = model.network.state_dict()
        for name, tensor in before.items():
            if "parametrizations" in name:  # a weight norm is taken apart anew, which rounds
                assert torch.allclose(state[name], tensor, rtol=1e-5, atol=1e-7), name
            else:
                assert torch.equal(state[name], tensor), name


def test_a_copy_of_a_recording_is_not_held_out(model, utterances, spy, tmp_path):
    copies = []
    for each in utterances:
        copy = tmp_path / f"copy-{each.audio.name}"
        copy.write_bytes(each.audio.read_bytes())
        copies.append(Utterance(f"copy-{each.audio.name}", copy, "ann"))
    config = replace(CONFIG, pruning=PruningConfig(score="magnitude", update="none"))
    with pytest.raises(PruningError, match="two different ones or more"):
        personalize(model, [utterances[0], copies[0]], config)
    with pytest.raises(PruningError, match="found 1; cut a long one"):
        personalize(model, utterances[:1], config)
    assert "adaptation" not in spy, "said before anything is listened to"
    personalize(model, utterances[:2], config)
    assert len(spy["held_out"]) == 1
