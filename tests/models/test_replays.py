"""Passes that can be run again: the same inputs as `observe` counts, whatever the weights are."""

import pytest
import torch
from torch import nn

from fpspeech.models import load_speech_model
from fpspeech.models.image_model import ImageModel
from fpspeech.pruning import Observer, apply_masks, execution_stages, select_layers

WINDOWS = [
    0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))
    for samples in (9_000, 16_000, 12_345)
]


@pytest.fixture(params=["tiny_group", "tiny_layer", "tiny_whisper_folder"])
def model(request):
    return load_speech_model(request.getfixturevalue(request.param), device="cpu")


def layers_of(model):
    return select_layers(model.network, dict(model.exclusions)).layers


def count(layers, replays):
    observer = Observer(layers, {layer.name for layer in layers}, product_stride=2)
    for replay in replays:
        with torch.inference_mode(), observer.counting(replay.valid):
            replay.run()
    return observer.statistics()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, statistics in expected.items():
        assert found[name].count == statistics.count, name
        assert torch.equal(found[name].square, statistics.square), name
        assert torch.equal(found[name].products, statistics.products), name


def halved(layers):
    masks = {}
    for layer in layers:
        masks[layer.name] = torch.arange(layer.size).reshape(layer.shape) % 2 == 0
    return masks


def test_replays_equal_observe_bit_for_bit_every_time(model):
    layers = layers_of(model)
    observer = Observer(layers, {layer.name for layer in layers}, product_stride=2)
    model.observe(WINDOWS, observer)
    replays = model.replays(WINDOWS, model.remember(WINDOWS))
    for _ in range(2):
        assert_same(count(layers, replays), observer.statistics())
    assert_same(count(layers, model.replays(WINDOWS)), observer.statistics())


def test_other_weights_see_the_same_positions(model):
    layers = layers_of(model)
    remembered = model.remember(WINDOWS)
    dense = count(layers, model.replays(WINDOWS, remembered))
    with apply_masks(layers, halved(layers)):
        pruned = count(layers, model.replays(WINDOWS, remembered))
    assert {name: each.count for name, each in pruned.items()} == {
        name: each.count for name, each in dense.items()
    }
    assert any(not torch.equal(pruned[name].square, dense[name].square) for name in dense)


def test_a_pruned_whisper_reads_what_the_dense_one_wrote(tiny_whisper_folder):
    model = load_speech_model(tiny_whisper_folder, device="cpu")
    layers = layers_of(model)
    written = model.remember(WINDOWS)
    with apply_masks(layers, halved(layers)):
        (replay,) = model.replays(WINDOWS, written)
        fed = []
        handle = model.network.model.decoder.embed_tokens.register_forward_pre_hook(
            lambda module, args: fed.append(args[0])
        )
        replay.run()
        handle.remove()
        own = model.remember(WINDOWS)
    for row, tokens in zip(fed[0], written, strict=True):
        assert row[: len(tokens)].tolist() == tokens.tolist()
    assert [each.tolist() for each in own] != [each.tolist() for each in written]


def test_stages_of_real_architectures(model):
    """Query, key and value of one attention share a stage; everything runs once."""
    layers = layers_of(model)
    replay = model.replays(WINDOWS[:1])[0]
    stages = execution_stages(layers, replay)
    assert all(stage.calls == len(stage.layers) for stage in stages)
    assert sum(len(stage.layers) for stage in stages) == len(layers)
    shared = {tuple(name.rsplit(".", 1)[-1] for name in stage.names) for stage in stages}
    if model.family == "whisper":
        assert ("q_proj", "k_proj", "v_proj") in shared
        assert ("k_proj", "v_proj") in shared  # of cross-attention, on the encoder's output
    else:
        assert ("q_proj", "k_proj", "v_proj") in shared
    one_alone = {names for names in shared if len(names) == 1}
    assert shared - one_alone <= {("q_proj", "k_proj", "v_proj"), ("k_proj", "v_proj")}


def test_an_image_model_replays_a_batch():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 2),
    )  # fmt: skip
    model = ImageModel(network, lambda pictures: torch.stack(list(pictures)), ["a", "b"])
    pictures = [torch.randn(3, 9, 9) for _ in range(4)]
    layers = layers_of(model)
    observer = Observer(layers, {layer.name for layer in layers}, product_stride=2)
    model.observe(pictures, observer)
    assert_same(count(layers, model.replays(pictures)), observer.statistics())
