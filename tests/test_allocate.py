"""How a speech model's sparsity is spread: blocks by name, exact totals, overrides on top."""

import pytest

from fpspeech.allocate import LEVELS, allocate, block_of, part_costs, parts
from fpspeech.corpora import read_utterances
from fpspeech.listening import WindowStream, first_seconds, listen
from fpspeech.models import load_speech_model
from fpspeech.pruning import PruningConfig, PruningError, prune_layers, select_layers
from fpspeech.signals import Reference

PRUNING = PruningConfig(sparsity=0.5, score="wanda", update="none")


@pytest.fixture(params=["tiny_group", "tiny_whisper_folder"])
def model(request):
    return load_speech_model(request.getfixturevalue(request.param), device="cpu")


@pytest.fixture
def layers(model):
    return select_layers(model.network, dict(model.exclusions)).layers


@pytest.fixture
def utterances(speech):
    return read_utterances(speech, speaker="ann")[:2]


def share(layers, pruning):
    total = sum(layer.size for layer in layers)
    return sum(layer.size * pruning.sparsity_for(layer.name) for layer in layers) / total


def test_blocks_of_wav2vec2(tiny_group):
    model = load_speech_model(tiny_group, device="cpu")
    expected = {
        "wav2vec2.feature_extractor.conv_layers.1.conv": "features",
        "wav2vec2.feature_extractor.conv_layers.2.conv": "features",
        "wav2vec2.feature_projection.projection": "features",
        "wav2vec2.encoder.pos_conv_embed.conv": "encoder.pos_conv",
        "wav2vec2.encoder.layers.0.attention.q_proj": "wav2vec2.encoder.layers.0",
        "wav2vec2.encoder.layers.0.feed_forward.output_dense": "wav2vec2.encoder.layers.0",
        "wav2vec2.encoder.layers.11.attention.q_proj": "wav2vec2.encoder.layers.11",
        "wav2vec2.adapter.layers.1.conv": "wav2vec2.adapter.layers.1",
        "lm_head": "lm_head",
    }
    assert {name: block_of(model, name) for name in expected} == expected


def test_blocks_of_whisper(tiny_whisper_folder):
    model = load_speech_model(tiny_whisper_folder, device="cpu")
    expected = {
        "model.encoder.conv2": "encoder.conv",
        "model.encoder.layers.1.self_attn.k_proj": "model.encoder.layers.1",
        "model.encoder.layers.1.fc1": "model.encoder.layers.1",
        "model.decoder.layers.1.self_attn.k_proj": "model.decoder.layers.1",
        "model.decoder.layers.1.encoder_attn.q_proj": "model.decoder.layers.1",
        "model.decoder.layers.1.fc2": "model.decoder.layers.1",
        "model.decoder.layers.0.fc2": "model.decoder.layers.0",
    }
    assert {name: block_of(model, name) for name in expected} == expected


def test_every_layer_is_in_one_part(model, layers):
    found = parts(model, layers)
    names = [layer.name for inside in found.values() for layer in inside]
    assert sorted(names) == sorted(layer.name for layer in layers)
    assert set(found) <= set(model.components) | {layer.name for layer in layers}
    assert len(found["encoder.ffn"]) == 4


def test_uniform_is_left_as_it_is(model, layers):
    assert allocate(model, layers, {}, PRUNING, "uniform") is PRUNING


@pytest.mark.parametrize("group", ["global", "2:4"])
def test_where_the_group_decides_there_is_nothing_to_allocate(model, layers, group):
    pruning = PruningConfig(sparsity=0.5, group=group)
    for allocation in ("owl", "erk", "sensitivity"):
        assert allocate(model, layers, {}, pruning, allocation) is pruning


def test_owl_and_erk_meet_the_total_and_spread_it(model, layers, utterances):
    statistics = listen(model, layers, utterances).statistics
    for allocation in ("owl", "erk"):
        found = allocate(model, layers, statistics, PRUNING, allocation)
        assert share(layers, found) == pytest.approx(0.5, abs=1e-6)
        assert len({found.sparsity_for(layer.name) for layer in layers}) > 2
    found = allocate(model, layers, statistics, PRUNING, "owl")
    by_block = {}
    for layer in layers:
        by_block.setdefault(block_of(model, layer.name), set()).add(found.sparsity_for(layer.name))
    assert all(len(sparsities) == 1 for sparsities in by_block.values()), "a block loses alike"


def test_what_is_said_of_single_layers_comes_on_top(model, layers):
    name = layers[-1].name
    pruning = PruningConfig(sparsity=0.5, score="magnitude", update="none", overrides=((name, 0),))
    found = allocate(model, layers, {}, pruning, "erk")
    plain = allocate(model, layers, {}, PRUNING, "erk")
    assert found.sparsity_for(name) == 0
    for layer in layers[:-1]:
        assert found.sparsity_for(layer.name) == plain.sparsity_for(layer.name)


def test_sensitivity_measures_each_part_alone_and_meets_the_total(model, layers, utterances):
    statistics = listen(model, layers, utterances).statistics
    reference = Reference(
        model, first_seconds(WindowStream(model, utterances), 0.5, model.sampling_rate)
    )
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    costs = part_costs(model, layers, statistics, PRUNING, reference)
    assert all((before[n] == t).all() for n, t in model.network.state_dict().items())
    members = parts(model, layers)
    assert costs.keys() == members.keys()
    for part, by_level in costs.items():
        assert sorted(by_level) == [0.0, *LEVELS], part
    from fpspeech.pruning import apply_masks

    level = PruningConfig(sparsity=0.7, score="wanda", update="none")
    part = "encoder.ffn"
    pruned = prune_layers(members[part], statistics, level)
    with apply_masks(members[part], pruned.masks):
        _, closeness = reference.compare(model)
    assert costs[part][0.7] == closeness.divergence > 0
    found = allocate(model, layers, statistics, PRUNING, "sensitivity", costs)
    assert share(layers, found) == pytest.approx(0.5, abs=1e-6)


def test_sensitivity_with_a_score_that_needs_other_peoples_statistics(tiny_group, speech):
    model = load_speech_model(tiny_group, device="cpu")
    layers = select_layers(model.network, dict(model.exclusions)).layers
    mine, others = (read_utterances(speech, speaker=name)[:1] for name in ("ann", "ben"))
    statistics, generic = (listen(model, layers, each).statistics for each in (mine, others))
    reference = Reference(model, first_seconds(WindowStream(model, mine), 0.5, model.sampling_rate))
    pruning = PruningConfig(sparsity=0.5, score="contrast", update="none")
    costs = part_costs(model, layers, statistics, pruning, reference, generic)
    assert costs["encoder.ffn"][0.9] > 0
    with pytest.raises(PruningError, match="needs statistics of other people"):
        part_costs(model, layers, statistics, pruning, reference)
