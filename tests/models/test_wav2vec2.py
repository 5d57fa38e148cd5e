"""The Wav2Vec2 adapter: what is counted, what is heard, what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2Processor

from fpspeech.models import ModelError, find_model, load_speech_model
from fpspeech.pruning import Observer, apply_masks, select_layers
from fpspeech.pruning.gains import Gains
from fpspeech.pruning.own_words import Spelling, written

WINDOWS = [
    torch.from_numpy(np.random.default_rng(seed).standard_normal(size)).float()
    for seed, size in enumerate((9_000, 16_000, 5_003))
]


@pytest.fixture(params=["tiny_group", "tiny_layer"])
def model(request):
    return load_speech_model(request.getfixturevalue(request.param), device="cpu")


def raw_inputs(model, window):
    """Every prunable layer's input for one window alone, through hooks of our own."""
    seen = {}
    handles = [
        layer.module.register_forward_pre_hook(
            lambda module, args, name=layer.name: seen.__setitem__(name, args[0].double())
        )
        for layer in select_layers(model.network).layers
    ]
    features = model.processor(window.numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        model.network(features.input_values)
    for handle in handles:
        handle.remove()
    return seen


def slow_sums(layer, values):
    """Σ|x| an input and the number of positions, by a loop over positions."""
    module = layer.module
    groups, _, inputs = layer.shape
    if isinstance(module, torch.nn.Linear):
        rows = values.reshape(-1, inputs)
        return rows.abs().sum(0, keepdim=True), rows.shape[0]
    (kernel,), (stride,), (padding,) = module.kernel_size, module.stride, module.padding
    padded = torch.nn.functional.pad(values[0], (padding, padding))
    positions = (padded.shape[1] - kernel) // stride + 1
    if "pos_conv" in layer.name and kernel % 2 == 0:
        positions -= 1  # the surplus output of an even kernel is thrown away
    total = torch.zeros(groups, inputs).double()
    for position in range(positions):
        window = padded[:, position * stride : position * stride + kernel]
        total += window.abs().reshape(groups, inputs)
    return total, positions


@pytest.mark.parametrize("together", [True, False])
def test_statistics_equal_a_recount_one_recording_at_a_time(model, together):
    """Whether run in one padded batch or singly, each recording counts as it does alone."""
    layers = select_layers(model.network).layers
    observer = Observer(layers)
    for batch in [WINDOWS] if together else [[window] for window in WINDOWS]:
        model.observe(batch, observer)
    found = observer.statistics()
    alone = [raw_inputs(model, window) for window in WINDOWS]
    for layer in layers:
        sums = [slow_sums(layer, inputs[layer.name]) for inputs in alone]
        assert found[layer.name].count == sum(count for _, count in sums), layer.name
        expected = sum(total for total, _ in sums)
        torch.testing.assert_close(
            found[layer.name].absolute, expected, rtol=2e-4, atol=1e-2, msg=layer.name
        )


def test_the_attention_mask_is_given_only_where_the_checkpoint_wants_it(model, monkeypatch):
    given = []
    forward = model.network.forward
    monkeypatch.setattr(
        model.network, "forward", lambda **inputs: given.append(inputs) or forward(**inputs)
    )
    model.observe(WINDOWS, Observer(()))
    if model.network.config.feat_extract_norm == "layer":
        assert [sorted(inputs) for inputs in given] == [["attention_mask", "input_values"]]
        assert given[0]["attention_mask"].sum(-1).tolist() == [len(w) for w in WINDOWS]
    else:  # one at a time, without padding
        assert [sorted(inputs) for inputs in given] == [["input_values"]] * 3
        assert [inputs["input_values"].shape for inputs in given] == [(1, len(w)) for w in WINDOWS]


def test_query_key_and_value_see_one_input(model):
    layers = select_layers(model.network).layers
    observer = Observer(layers)
    model.observe(WINDOWS[:1], observer)
    found = observer.statistics()
    names = [f"wav2vec2.encoder.layers.0.attention.{part}_proj" for part in "qkv"]
    assert torch.equal(found[names[0]].square, found[names[1]].square)
    assert torch.equal(found[names[0]].square, found[names[2]].square)


def test_transcribe_equals_the_processor_by_hand(model):
    network = Wav2Vec2ForCTC.from_pretrained(model.source.folder).eval()
    processor = Wav2Vec2Processor.from_pretrained(model.source.folder)
    features = processor(WINDOWS[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        logits = network(features.input_values).logits
    expected = processor.batch_decode(logits.argmax(-1))[0]
    assert model.transcribe(WINDOWS[:1]).text == expected
    assert expected, "the tiny model should hear something"


def test_posteriors_of_windows_of_one_length_are_those_of_each_and_spell_what_it_writes(model):
    windows = [WINDOWS[0], WINDOWS[1][:9_000]]
    together = model.log_posteriors(windows)
    assert float(together.exp().sum(-1).sub(1).abs().max()) < 1e-5
    vocabulary = model.processor.tokenizer.get_vocab()
    letters = {number: symbol for symbol, number in vocabulary.items()}
    for window, found in zip(windows, together, strict=True):
        torch.testing.assert_close(found, model.log_posteriors([window])[0], atol=1e-4, rtol=0)
        words = written(model.log_posteriors([window])[0], model.spelling)
        spelt = " ".join("".join(letters[symbol] for symbol in word) for word in words)
        assert spelt == model.transcribe([window]).text
    assert model.spelling == Spelling(vocabulary["<pad>"], vocabulary["|"])


def test_windows_of_one_recording_are_joined_by_a_space(model):
    parts = [model.transcribe([window]).text for window in WINDOWS]
    assert model.transcribe(iter(WINDOWS)).text == " ".join(part for part in parts if part)


def test_components_and_exclusions_name_layers_that_are_there(model):
    selection = select_layers(model.network, dict(model.exclusions))
    assert {e.name for e in selection.excluded} == {
        "wav2vec2.feature_extractor.conv_layers.0.conv",
        "lm_head",
    }
    from fnmatch import fnmatchcase

    covered = set()
    for name, patterns in model.components.items():
        matched = {
            layer.name
            for layer in selection.layers
            for pattern in patterns
            if fnmatchcase(layer.name, pattern)
        }
        assert matched, name
        assert not matched & covered, "components must not overlap"
        covered |= matched
    assert covered == {layer.name for layer in selection.layers}


def test_saved_folder_has_the_same_names_and_loads_by_stock_code(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    from safetensors import safe_open

    names = []
    for folder in (model.source.folder, tmp_path / "saved"):
        with safe_open(folder / "model.safetensors", "pt") as file:
            names.append(set(file.keys()))
    assert names[0] == names[1]
    stock = Wav2Vec2ForCTC.from_pretrained(tmp_path / "saved").eval()
    processor = Wav2Vec2Processor.from_pretrained(tmp_path / "saved")
    features = processor(WINDOWS[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(stock(features.input_values).logits[0], model.logits(WINDOWS[0]))


def test_older_checkpoints_with_weight_g_and_weight_v_load(tiny_group, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "older"
    shutil.copytree(tiny_group, folder)
    renamed = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    assert any(name.endswith("weight_g") for name in renamed)
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    older, newer = load_speech_model(folder, device="cpu"), load_speech_model(tiny_group)
    assert torch.equal(older.logits(WINDOWS[0]), newer.logits(WINDOWS[0]))


def test_a_model_without_a_ctc_head_is_refused(tiny_group, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "headless"
    shutil.copytree(tiny_group, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "lm_head" not in name},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ModelError, match=r"lacks weights of a Wav2Vec2ForCTC \(lm_head"):
        load_speech_model(folder, device="cpu")


def test_a_model_without_a_tokenizer_is_refused(tiny_group, tmp_path):
    folder = tmp_path / "mute"
    shutil.copytree(tiny_group, folder)
    for name in ("vocab.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="has no processor that loads"):
        load_speech_model(folder, device="cpu")


def test_another_family_is_refused_with_the_nearest_name(tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2-bert"}))
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"model type 'wav2vec2-bert'.*such as wav2vec2"):
        load_speech_model(folder)


@pytest.mark.parametrize("missing", ["./nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_no_hub_id(missing):
    with pytest.raises(ModelError, match="is no folder"):
        find_model(missing)


def test_a_hub_id_without_a_network_says_what_to_do():
    with pytest.raises(ModelError, match="could not be had from the Hugging Face Hub"):
        find_model("facebook/wav2vec2-base-960h")


def test_the_hash_is_of_the_weights_alone(tiny_group, tmp_path):
    folder = tmp_path / "renamed"
    shutil.copytree(tiny_group, folder)
    assert find_model(folder).sha256 == find_model(tiny_group).sha256
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert find_model(folder).sha256 != find_model(tiny_group).sha256


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_published_architectures_select_as_documented(norm):
    """The layer names and shapes of base-960h and large-lv60, from their configurations alone."""
    large = norm == "layer"
    config = Wav2Vec2Config(
        hidden_size=1024 if large else 768,
        num_hidden_layers=24 if large else 12,
        num_attention_heads=16 if large else 12,
        intermediate_size=4096 if large else 3072,
        feat_extract_norm=norm,
        conv_bias=large,
        do_stable_layer_norm=large,
        vocab_size=32,
    )
    with torch.device("meta"):
        network = Wav2Vec2ForCTC(config)
    selection = select_layers(network, {"lm_head": "output layer"})
    shapes = {layer.name: layer.shape for layer in selection.layers}
    width = config.hidden_size
    assert shapes["wav2vec2.encoder.pos_conv_embed.conv"] == (16, width // 16, width // 16 * 128)
    assert shapes["wav2vec2.feature_extractor.conv_layers.6.conv"] == (1, 512, 1024)
    assert len(shapes) == 7 + 1 + 1 + config.num_hidden_layers * 6


def test_each_channel_of_the_front_end_has_one_gain(model):
    """By its row, or by the group norm in front of which a gain of the row would be none."""
    names = [gain.name.removeprefix("wav2vec2.") for gain in model.gains]
    layer = model.network.config.feat_extract_norm == "layer"
    expected = []
    for number in range(3):
        front = f"feature_extractor.conv_layers.{number}"
        if layer or number > 0:
            expected.append(f"{front}.conv.weight")
        if layer or number == 0:
            expected.append(f"{front}.layer_norm.weight")
    assert names == [*expected, "feature_projection.layer_norm.weight"]
    assert [gain.rows for gain in model.gains] == ["conv" in n.split(".")[-2] for n in names]


def test_recordings_of_a_batch_can_each_have_gains_of_their_own(model):
    gains = Gains(model.network, model.gains)
    points = 0.3 * torch.randn(3, gains.dimensions, generator=torch.Generator().manual_seed(0))
    windows = [window[:5000] for window in WINDOWS]
    with gains.of_each(points):
        together = model.logits_together(windows)
    for point, window, found in zip(points, windows, together, strict=True):
        with apply_masks([], {}, network=model.network, values=gains.values(point)):
            torch.testing.assert_close(found, model.logits(window), atol=1e-3, rtol=1e-3)
        assert not torch.allclose(found, model.logits(window), atol=1e-2)
