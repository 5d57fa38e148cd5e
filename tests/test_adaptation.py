"""A speaker normalised and pruned: what is stored is what was in force, and folds keep masks."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import Wav2Vec2ForCTC, WhisperForConditionalGeneration

import fpspeech.adaptation as adapting
from fpspeech import Config, Personal, PruningConfig, load_speech_model, merge, read_utterances
from fpspeech.adaptation import adapt_to
from fpspeech.corpora import inspect_recording, read_windows
from fpspeech.generic import GenericError, measure_generic
from fpspeech.listening import Interrupted, Listener, WindowStream, first_seconds, listen
from fpspeech.normalize import Normalization, normalize
from fpspeech.personalize_speech import personalize, select_layers_of
from fpspeech.pruning import products_for
from fpspeech.sequential_listening import prune_while_listening

STRENGTHS = {
    "wav2vec2": "features=1,projection=0.5,layer0=1",
    "whisper": "conv1=1,conv2=0.5,layer0=1",
}
FOLDED = {
    "wav2vec2": "wav2vec2.feature_projection.projection",
    "whisper": "model.encoder.conv2",
}
ALONE = PruningConfig(sparsity=0.5, score="wanda", update="none")
REFITTED = PruningConfig(sparsity=0.5)


@pytest.fixture(params=["tiny_group", "tiny_layer", "tiny_whisper_folder"])
def model(request):
    return load_speech_model(request.getfixturevalue(request.param), device="cpu")


@pytest.fixture
def utterances(speech):
    return read_utterances(speech, speaker="ann")[:3]


@pytest.fixture
def others(speech):
    return read_utterances(speech, speaker="ben")[:3]


def state(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def layers_of(model):
    return select_layers_of(model, Config()).layers


def settings(model, pruning, **named):
    normalize = STRENGTHS[model.family]
    return Config(pruning=pruning, normalize=normalize, allocation="uniform", **named)


def adapted(model, utterances, config, generic, **named):
    layers = layers_of(model)
    products = products_for(layers, config.pruning)
    return adapt_to(model, layers, utterances, config, products=products, generic=generic, **named)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pruning", [ALONE, REFITTED], ids=["alone", "refitted"])
def test_the_artifact_on_a_fresh_base_is_the_network_that_was_in_memory(
    model, utterances, others, tmp_path, pruning, full
):
    generic = measure_generic(model, others)
    config = settings(model, pruning, full_covariance=full)
    before = state(model)
    adaptation = adapted(model, utterances, config, generic)
    pruned = adaptation.prune(config)
    assert_same(state(model), before)
    with adaptation.apply(pruned):
        in_memory = state(model)
    personal = personalize(model, utterances, config, generic=generic)
    assert_same(state(model), before)
    personal.save(tmp_path / "ann")
    fresh = load_speech_model(model.source.folder, device="cpu")
    loaded = Personal.load(tmp_path / "ann")
    assert loaded.config == config
    with loaded.apply(fresh):
        assert_same(state(fresh), in_memory)
        weights = {layer.name: layer.weight().clone() for layer in layers_of(fresh)}
    name = FOLDED[model.family]
    mask = loaded.masks[name]
    assert int((~mask).sum()) == mask.shape[0] * mask.shape[1] * (mask.shape[2] // 2)
    assert not weights[name][~mask].any(), "what was pruned stays zero in a layer that is folded"
    assert weights[name][mask].all()
    assert f"{name}.bias" in loaded.values
    whole = {f"{each}.weight" for each in loaded.masks} & loaded.values.keys()
    assert not whole, "a whole weight would undo its mask"
    assert all(kept.dtype == torch.float16 for kept in loaded.kept.values())


def test_a_folded_weight_without_an_update_is_stored_as_it_was_folded(model, utterances, others):
    generic = measure_generic(model, others)
    config = settings(model, ALONE)
    adaptation = adapted(model, utterances, config, generic)
    pruned = adaptation.prune(config)
    name = FOLDED[model.family]
    layer = next(each for each in layers_of(model) if each.name == name)
    dense = layer.weight()[pruned.masks[name]].half()
    with adaptation.normalized.apply(model):
        expected = layer.weight()[pruned.masks[name]].half()
    assert torch.equal(pruned.kept[name], expected)
    assert not torch.equal(expected, dense)
    changed = set(pruned.kept)
    plain = replace(config, normalize="none")
    assert not adapted(model, utterances, plain, None).prune(plain).kept
    assert changed < set(pruned.masks), "layers that are not folded store nothing"


def test_the_speaker_is_heard_behind_the_normalisation(model, utterances, others):
    generic = measure_generic(model, others)
    config = settings(model, ALONE)
    adaptation = adapted(model, utterances, config, generic)
    windows = [
        window
        for each in utterances
        for window in read_windows(
            inspect_recording(each.audio),
            sampling_rate=model.sampling_rate,
            window_seconds=model.window_seconds,
        )
    ]
    expected = normalize(model, windows, Normalization(config.strengths), generic)
    assert_same(dict(adaptation.normalized.values), dict(expected.values))
    with expected.apply(model):
        behind = listen(model, layers_of(model), utterances).statistics
    plain = listen(model, layers_of(model), utterances).statistics
    last = [name for name in plain if name.startswith(("wav2vec2.encoder.la", "model.encoder.la"))]
    for name in last:
        assert torch.equal(adaptation.heard.statistics[name].square, behind[name].square)
    assert any(not torch.equal(plain[name].square, behind[name].square) for name in last)


def test_merged_it_loads_by_stock_code_with_the_same_logits(model, utterances, others, tmp_path):
    generic = measure_generic(model, others)
    personal = personalize(model, utterances, settings(model, REFITTED), generic=generic)
    merge(personal, model, tmp_path / "merged")
    samples = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    if model.family == "whisper":
        stock = WhisperForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
        features = torch.randn(1, model.network.config.num_mel_bins, 3000)
        inputs = {"input_features": features, "decoder_input_ids": torch.tensor([[8, 1, 2]])}
    else:
        stock = Wav2Vec2ForCTC.from_pretrained(tmp_path / "merged").eval()
        inputs = {"input_values": samples}
    with torch.no_grad():
        dense = model.network(**inputs).logits
        with personal.apply(model):
            applied = model.network(**inputs).logits
        assert torch.equal(stock(**inputs).logits, applied)
    assert not torch.equal(applied, dense)


def test_statistics_under_another_normalisation_are_not_gone_on_from(
    tiny_group, utterances, others, tmp_path
):
    model = load_speech_model(tiny_group, device="cpu")
    generic = measure_generic(model, others)
    checkpoint = tmp_path / "saved.safetensors"
    config = Config(pruning=ALONE, normalize="features=1")

    def first_seconds_counted(config):
        """The seconds that a run begins with: those of the checkpoint where it goes on from it."""
        seen = []
        adaptation = adapted(
            model, utterances, config, generic, checkpoint=checkpoint,
            listener=Listener(heard=seen.append),
        )  # fmt: skip
        return seen[0], adaptation

    def interrupt():
        checkpoint.unlink(missing_ok=True)
        windows = []
        stop = Listener(stop=lambda: windows.append(1) or len(windows) == 2)
        with pytest.raises(Interrupted):
            adapted(model, utterances, config, generic, checkpoint=checkpoint, listener=stop)
        assert checkpoint.is_file()

    interrupt()
    began, adaptation = first_seconds_counted(config)
    assert began == pytest.approx(0.6 + 0.7, abs=0.01)
    whole = adapted(model, utterances, config, generic)
    for name, each in whole.heard.statistics.items():
        assert torch.equal(adaptation.heard.statistics[name].square, each.square)
    for normalization in ("features=0.5", "none"):
        interrupt()
        began, _ = first_seconds_counted(replace(config, normalize=normalization))
        assert began == pytest.approx(0.6, abs=0.01), normalization


def test_sequential_order_behind_the_normalisation(model, utterances, others, monkeypatch):
    generic = measure_generic(model, others)
    config = settings(model, PruningConfig(sparsity=0.5, order="sequential"))
    monkeypatch.setattr(adapting, "listen", lambda *a, **n: pytest.fail("listened beforehand"))
    adaptation = adapted(model, utterances[:2], config, generic)
    pruned = adaptation.prune(config)
    assert len(adaptation.heard.fingerprints) == 2
    with adaptation.normalized.apply(model):
        expected = prune_while_listening(model, layers_of(model), utterances[:2], config.pruning)
    assert_same(pruned.masks, expected.pruned.masks)
    for name, kept in expected.pruned.kept.items():
        assert torch.equal(pruned.kept[name], kept), name
    with adaptation.apply(pruned):
        weights = {layer.name: layer.weight().clone() for layer in layers_of(model)}
    for name, mask in pruned.masks.items():
        assert not weights[name][~mask].any(), name


def test_a_contrast_in_sequential_order_gets_the_generic_statistics(tiny_group, utterances, others):
    model = load_speech_model(tiny_group, device="cpu")
    layers = layers_of(model)
    generic = measure_generic(model, others, layers)
    pruning = PruningConfig(sparsity=0.5, score="contrast", update="none", order="sequential")
    config = Config(pruning=pruning, allocation="uniform")
    found = adapted(model, utterances[:2], config, generic).prune(config)
    expected = prune_while_listening(
        model, layers, utterances[:2], pruning, generic=generic.statistics
    )
    assert_same(found.masks, expected.pruned.masks)


def test_one_listening_serves_every_sparsity(tiny_group, utterances):
    model = load_speech_model(tiny_group, device="cpu")
    adaptation = adapted(model, utterances, Config(pruning=REFITTED), None)
    for sparsity in (0.3, 0.7):
        config = Config(pruning=replace(REFITTED, sparsity=sparsity))
        assert_same(
            adaptation.prune(config).masks, dict(personalize(model, utterances, config).masks)
        )


def test_sensitivity_is_measured_once_for_every_sparsity(tiny_group, utterances, monkeypatch):
    model = load_speech_model(tiny_group, device="cpu")
    calls = []
    measure = adapting.part_costs
    monkeypatch.setattr(
        adapting, "part_costs", lambda *arguments: calls.append(1) or measure(*arguments)
    )
    config = Config(pruning=ALONE, allocation="sensitivity")
    adaptation = adapted(model, utterances, config, None)
    for sparsity in (0.3, 0.5):
        masks = adaptation.prune(replace(config, pruning=replace(ALONE, sparsity=sparsity))).masks
        pruned = sum(int((~mask).sum()) for mask in masks.values())
        total = sum(mask.numel() for mask in masks.values())
        assert pruned / total == pytest.approx(sparsity, abs=0.05)
    assert len(calls) == 1


def test_a_search_is_accounted_for_in_the_report(tiny_group, utterances, others, tmp_path):
    model = load_speech_model(tiny_group, device="cpu")
    generic = measure_generic(model, others)
    config = Config(pruning=ALONE, normalize="search", search_budget=3)
    personal = personalize(model, utterances, config, generic=generic)
    account = personal.report["normalization"]
    assert 1 <= account["evaluations"] <= 3
    assert account["generic_speakers"] == 1
    assert "nan" not in json.dumps(account).lower()
    personal.save(tmp_path / "ann")
    assert Personal.load(tmp_path / "ann").config == config


def test_numbers_of_other_people_that_are_missing_are_an_error_before_listening(
    tiny_group, utterances, others, monkeypatch
):
    model = load_speech_model(tiny_group, device="cpu")
    without = measure_generic(model, others[:1])
    bare = measure_generic(model, others[:1], layers_of(model))
    monkeypatch.setattr(adapting, "listen", lambda *a, **n: pytest.fail("listened"))
    contrast = PruningConfig(score="contrast", update="none")
    shrunk = PruningConfig(shrinkage="auto")
    cases = [
        (Config(normalize="search"), None, "normalisation 'search' needs numbers.*--generic"),
        (Config(pruning=contrast), None, "score 'contrast' needs numbers of other people"),
        (Config(pruning=shrunk), None, "shrinkage 'auto' needs numbers of other people"),
        (Config(pruning=contrast), without, "which the score 'contrast' needs.*--statistics"),
        (
            Config(pruning=contrast, normalize="features=1"),
            without,
            "which the score 'contrast' needs.*--statistics",
        ),
        (Config(pruning=shrunk), without, "which the shrinkage 'auto' needs.*--statistics"),
        (Config(pruning=shrunk), bare, "which the shrinkage 'auto' needs.*--products"),
    ]
    for config, generic, message in cases:
        with pytest.raises(GenericError, match=message):
            adapted(model, utterances, config, generic)


def test_the_first_seconds_are_whole_windows_in_order(tiny_group, utterances):
    model = load_speech_model(tiny_group, device="cpu")

    def lengths(seconds):
        stream = WindowStream(model, utterances)
        return [len(each) for each in first_seconds(stream, seconds, model.sampling_rate)]

    assert lengths(1.0) == [9600, 11200]
    assert lengths(0.6) == [9600]
    assert len(lengths(100.0)) == 3


def test_every_token_is_counted_and_every_nth_frame(tiny_whisper_folder, utterances):
    """A few minutes of speech are a few hundred tokens, fewer than a decoder layer has inputs."""
    model = load_speech_model(tiny_whisper_folder, device="cpu")
    config = Config(pruning=replace(REFITTED, product_stride=4))
    layers = select_layers_of(model, config).layers
    heard = listen(
        model,
        layers,
        utterances,
        products=products_for(layers, config.pruning),
        product_stride=config.pruning.product_stride,
    )
    for name, found in heard.statistics.items():
        cross = name.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))
        if ".decoder." in name and not cross:
            assert found.product_count == found.count, name
        else:
            assert found.product_count == pytest.approx(found.count / 4, rel=0.05), name
