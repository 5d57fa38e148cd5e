"""How much each part loses, searched: the total is met, the other half decides, OWL is safe."""

import pytest
import torch

from fpspeech import search_allocation as searching
from fpspeech.allocate import block_of, owl_by_block, parts_of_blocks
from fpspeech.config import Config
from fpspeech.corpora import read_utterances
from fpspeech.listening import WindowStream, listen
from fpspeech.models import load_speech_model
from fpspeech.personalize_speech import personalize
from fpspeech.pruning import PruningConfig, PruningError, prune_layers, select_layers
from fpspeech.search_allocation import SHIFTS, search_allocation
from fpspeech.signals import Reference

PRUNING = PruningConfig(sparsity=0.5, score="wanda", update="none")


@pytest.fixture(params=["tiny_group", "tiny_whisper_folder"])
def model(request):
    return load_speech_model(request.getfixturevalue(request.param), device="cpu")


@pytest.fixture
def utterances(speech):
    return read_utterances(speech)


class Search:
    """A search on a tiny model, and what is needed to look at it from outside."""

    def __init__(self, model, utterances):
        self.model = model
        self.layers = select_layers(model.network, dict(model.exclusions)).layers
        self.statistics = listen(model, self.layers, utterances).statistics
        self.windows = list(WindowStream(model, utterances))
        self.parts = parts_of_blocks(model, self.layers)
        self.start = owl_by_block(model, self.layers, self.statistics, 0.5)
        self.candidates = 0

    def pruned(self, allocation):
        self.candidates += 1
        config = PruningConfig(
            sparsity=0.5, score="wanda", update="none", overrides=allocation.overrides
        )
        return prune_layers(self.layers, self.statistics, config).apply(
            self.layers, self.model.network
        )

    def run(self, **options):
        return search_allocation(
            self.model, self.parts, self.start, 0.5, self.pruned, self.windows, **options
        )

    def divergence(self, allocation, half):
        reference = Reference(self.model, self.windows[half::2])
        with self.pruned(allocation):
            _, closeness = reference.compare(self.model)
        return closeness.divergence


@pytest.fixture
def search(model, utterances, monkeypatch):
    # A model of random weights writes nonsense, pruned or not.
    monkeypatch.setattr(searching, "collapsed", lambda candidate, dense: None)
    return Search(model, utterances)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def share(allocation):
    total = sum(layer.size for layer in allocation.layers)
    return sum(layer.size * layer.sparsity for layer in allocation.layers) / total


def test_parts_are_attention_and_feed_forward_of_each_layer(model):
    layers = select_layers(model.network, dict(model.exclusions)).layers
    found = parts_of_blocks(model, layers)
    assert sorted(each.name for members in found.values() for each in members) == sorted(
        each.name for each in layers
    )
    for part, members in found.items():
        (block,) = {block_of(model, each.name) for each in members}
        assert part.startswith(block)
    stacked = {block_of(model, layer.name) for layer in layers if ".layers." in layer.name}
    assert sum(part.endswith(" ffn") for part in found) == len(stacked)
    assert sum(part.endswith(" self_attn") for part in found) == len(stacked)


def test_what_is_found_is_closer_on_both_halves_and_meets_the_total(search, monkeypatch):
    monkeypatch.setattr(searching, "confirmed", lambda *given, **named: (True, 0.9))
    before = weights(search.model)
    found = search.run(budget=12)
    assert found.searched.evaluations <= 12
    assert found.reason is None
    assert found.shifts, "nothing was found: the test shows nothing"
    assert set(found.shifts.values()) <= set(SHIFTS)
    assert share(found.allocation) == pytest.approx(0.5, abs=1e-6)
    first = search.divergence(search.start, 0), search.divergence(found.allocation, 0)
    assert first[1] < first[0]
    assert (found.searched.start_objective, found.searched.objective) == pytest.approx(first)
    other = search.divergence(search.start, 1), search.divergence(found.allocation, 1)
    assert found.other_half == pytest.approx(other)
    for name, tensor in search.model.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_other_half_decides(search, monkeypatch):
    monkeypatch.setattr(searching, "confirmed", lambda *given, **named: (False, 0.3))
    found = search.run(budget=8)
    assert found.shifts
    assert found.allocation is search.start
    assert found.as_json()["reason"] == "not confirmed on the other half"
    assert not found.as_json()["searched"]


def test_what_has_collapsed_never_wins(search, monkeypatch):
    monkeypatch.setattr(searching, "collapsed", lambda candidate, dense: "it writes nothing")
    found = search.run(budget=8)
    assert found.shifts == {}
    assert found.allocation is search.start
    assert found.reason == "no part gets closer to dense"


def test_the_budget_is_kept(search):
    search.run(budget=3)
    assert search.candidates <= 3 + 2  # and twice on the other half


def test_one_window_is_too_few(search):
    search.windows = search.windows[:1]
    with pytest.raises(PruningError, match=r"needs two windows of audio or more.*found 1"):
        search.run()


@pytest.mark.parametrize("order", ["independent", "sequential"])
def test_it_is_accounted_for_and_used(tiny_group, utterances, monkeypatch, order):
    monkeypatch.setattr(searching, "collapsed", lambda candidate, dense: None)
    monkeypatch.setattr(searching, "confirmed", lambda *given, **named: (True, 0.9))
    model = load_speech_model(tiny_group, device="cpu")
    pruning = PruningConfig(sparsity=0.5, score="wanda", update="none", order=order)
    found = personalize(
        model, utterances, Config(pruning=pruning, allocation="search", search_budget=6)
    )
    account = found.report["allocation"]
    assert account["searched"]
    assert account["found"]
    plain = personalize(model, utterances, Config(pruning=pruning, allocation="owl"))
    assert found.report["sparsity"] == pytest.approx(plain.report["sparsity"], abs=0.02)
    assert any(not torch.equal(found.masks[name], plain.masks[name]) for name in plain.masks)


def test_where_the_group_decides_nothing_is_searched(tiny_group, utterances):
    model = load_speech_model(tiny_group, device="cpu")
    pruning = PruningConfig(sparsity=0.5, group="global", score="wanda", update="none")
    found = personalize(model, utterances, Config(pruning=pruning, allocation="search"))
    assert "allocation" not in found.report
