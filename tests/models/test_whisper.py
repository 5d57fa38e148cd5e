"""The Whisper adapter: what is counted, what is heard, what is written."""

import json
import logging
import os
import shutil
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_whisper import tiny_whisper
from torch import nn
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    WhisperForConditionalGeneration,
)

from fpspeech.models import ModelError, Transcript, load_speech_model
from fpspeech.pruning import (
    InputStatistics,
    Observer,
    PruningConfig,
    apply_masks,
    make_masks,
    select_layers,
    sparsity_of,
)

RATE = 16_000  # Hz
SAMPLES = (16_000, 24_001, 40_007)  # no multiple of a frame but the first


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def model(folder):
    return load_speech_model(folder, device="cpu")


@pytest.fixture(scope="module")
def windows() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    pitches = (30, 100, 300)
    return [
        torch.randn(samples, generator=generator) * 0.1 * torch.linspace(0, pitch, samples).sin()
        for samples, pitch in zip(SAMPLES, pitches, strict=True)
    ]


def every_layer(model):
    """All layers that can be counted, the first convolution too."""
    return select_layers(model.network, {"proj_out": "tied"}).layers


def observed(model, batches) -> dict[str, InputStatistics]:
    observer = Observer(every_layer(model))
    for batch in batches:
        model.observe(batch, observer)
    return observer.statistics()


def stock_tokens(model, window, **language) -> list[int]:
    """Prompt and output by transformers' own `generate`, cut to what the decoder was fed."""
    features = model.feature_extractor(window.numpy(), sampling_rate=RATE, return_tensors="pt")
    written = model.network.generate(
        features.input_features,
        max_new_tokens=model.max_new_tokens,
        do_sample=False,
        num_beams=1,
        **language,
    )[0].tolist()
    # generate() cuts the end token off; without one, the last token was fed to nothing.
    fed = written[:-1] if len(written) == model.max_new_tokens else written
    return [*model.prompt[0].tolist(), *fed]


def raw_inputs(network: nn.Module, layers, run) -> dict[str, list[torch.Tensor]]:
    """The inputs of every call of every layer, by hooks of the test's own."""
    seen: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in layers}
    handles = [
        layer.module.register_forward_pre_hook(
            lambda module, args, name=layer.name: seen[name].append(args[0].detach().clone())
        )
        for layer in layers
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return seen


def recounted(module: nn.Module, raw: torch.Tensor, positions: int) -> torch.Tensor:
    """Count, Σx, Σ|x|, Σx² over the first positions of one item's input, in a slow loop."""
    sums = torch.zeros(4, module.weight[0].numel(), dtype=torch.float64)
    if isinstance(module, nn.Conv1d):
        raw = nn.functional.pad(raw, (module.padding[0],) * 2)
    for position in range(positions):
        if isinstance(module, nn.Conv1d):
            start = position * module.stride[0]
            x = raw[:, start : start + module.kernel_size[0]].reshape(-1).double()
        else:
            x = raw[position].double()
        sums += torch.stack([torch.ones_like(x), x, x.abs(), x * x])
    return sums


def test_the_statistics_equal_a_recount_of_a_teacher_forced_pass_cut_by_hand(model, windows):
    layers = every_layer(model)
    expected = {layer.name: torch.zeros(4, layer.shape[2]).double() for layer in layers}
    ends = []
    for window in windows:
        fed = stock_tokens(model, window, language="en", task="transcribe")
        ends.append(len(fed))
        features = model.feature_extractor(window.numpy(), sampling_rate=RATE, return_tensors="pt")
        raw = raw_inputs(
            model.network,
            layers,
            lambda features=features, fed=fed: model.network(
                features.input_features, decoder_input_ids=torch.tensor([fed])
            ),
        )
        frames = -(-len(window) // 320)  # of 20 ms
        for layer in layers:
            (only,) = raw[layer.name]
            if layer.name == "model.encoder.conv1":
                positions = -(-len(window) // 160)  # of 10 ms
            elif ".encoder." in layer.name or layer.name.endswith(
                ("encoder_attn.k_proj", "encoder_attn.v_proj")
            ):
                positions = frames
                assert only.shape[-1] == 3000 if "conv" in layer.name else only.shape[1] == 1500
            else:
                positions = len(fed)
                assert only.shape[1] == positions
            expected[layer.name] += recounted(layer.module, only[0], positions)
    assert len(set(ends)) > 1, "some outputs should be padded"
    found = observed(model, [windows])
    assert set(found) == set(expected)
    for name, statistics in found.items():
        count, total, absolute, square = expected[name]
        assert statistics.count == count[0]
        for sums, slow in (
            (statistics.total, total),
            (statistics.absolute, absolute),
            (statistics.square, square),
        ):
            torch.testing.assert_close(sums[0].double(), slow, rtol=1e-4, atol=1e-3)


def test_the_decoder_is_counted_as_cached_generation_runs_it(model, windows):
    """Every token fed once; cross-attention's keys and values once a frame, not once a token."""
    window = windows[0]
    layers = [layer for layer in every_layer(model) if ".decoder." in layer.name]
    raw = raw_inputs(model.network, layers, lambda: model.decode([window]))
    found = observed(model, [[window]])
    tokens = len(model.decode([window])[0].tokens)
    positions = model.prompt.shape[1] + tokens - 1
    frames = -(-len(window) // 320)
    for layer in layers:
        generated = torch.cat(raw[layer.name], 1)[0]
        crossing = layer.name.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))
        assert len(raw[layer.name]) == (1 if crossing else tokens)
        if crossing:
            generated = generated[:frames]
        assert found[layer.name].count == len(generated) == (frames if crossing else positions)
        torch.testing.assert_close(
            found[layer.name].absolute[0].float(), generated.abs().sum(0), rtol=1e-4, atol=1e-3
        )


def test_frames_of_the_padding_to_30_seconds_stay_out(model, windows, monkeypatch):
    """Whatever stands in the padding's frames, the encoder's first layers count the same."""
    window = windows[0]
    before = observed(model, [[window]])
    features = model._features([window])
    changed = features.clone()
    changed[:, :, 110:] = torch.randn(changed[:, :, 110:].shape)  # one second is 100 frames
    monkeypatch.setattr(model, "_features", lambda windows: changed)
    after = observed(model, [[window]])
    for name in ("model.encoder.conv1", "model.encoder.conv2", "model.encoder.layers.0.fc1"):
        same = torch.equal(before[name].absolute, after[name].absolute)
        # Attention sees the padding; only what is counted is restricted.
        assert same is ("conv" in name)
        assert before[name].count == after[name].count == (100 if name.endswith("conv1") else 50)


def test_a_batch_counts_and_hears_what_its_windows_do_one_at_a_time(model, windows):
    together, alone = observed(model, [windows]), observed(model, [[w] for w in windows])
    for name in together:
        assert together[name].count == alone[name].count
        for kind in ("total", "absolute", "square"):
            torch.testing.assert_close(
                getattr(together[name], kind), getattr(alone[name], kind), rtol=1e-4, atol=1e-3
            )
    batch, single = model.decode(windows), [model.decode([window])[0] for window in windows]
    assert [each.tokens for each in batch] == [each.tokens for each in single]
    assert {each.at_cap for each in batch} == {True, False}
    for one, other in zip(batch, single, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-3)


def test_nothing_is_attached_while_the_model_transcribes(model, windows, monkeypatch):
    attached = []
    decode = model.decode

    def watched(batch):
        attached.append(sum(len(m._forward_pre_hooks) for m in model.network.modules()))
        return decode(batch)

    monkeypatch.setattr(model, "decode", watched)
    calls = Counter()
    handle = model.network.model.encoder.register_forward_hook(
        lambda *_: calls.update(
            [any(layer.module._forward_pre_hooks for layer in every_layer(model))]
        )
    )
    model.observe(windows, Observer(every_layer(model)))
    handle.remove()
    assert attached == [0]
    assert calls == {False: 1, True: 1}
    assert not any(m._forward_pre_hooks for m in model.network.modules())


def test_average_log_probability_is_that_of_the_teacher_forced_logits(model, windows):
    (decoded,) = model.decode([windows[0]])
    with torch.no_grad():
        logits = model.network(
            model._features([windows[0]]), decoder_input_ids=model._fed(decoded)[None]
        ).logits[0, model.prompt.shape[1] - 1 :]
    suppressed = model.network.generation_config.suppress_tokens
    logits[:, suppressed] = -torch.inf
    logits[0, model.network.generation_config.begin_suppress_tokens] = -torch.inf
    chosen = logits.log_softmax(-1)[range(len(decoded.tokens)), list(decoded.tokens)]
    assert decoded.average_log_probability == pytest.approx(chosen.mean().item(), abs=1e-4)


def test_it_has_no_posteriors_of_frames(model, windows):
    assert model.spelling is None
    with pytest.raises(ModelError, match="no posteriors of frames"):
        model.log_posteriors(windows[:1])


def test_windows_of_a_recording_are_joined_and_those_at_the_cap_counted(model, windows):
    alone = [model.transcribe([window]) for window in windows]
    together = model.transcribe(iter(windows))
    texts = []
    for window in windows:
        tokens = stock_tokens(model, window, language="en", task="transcribe")
        if model.decode([window])[0].at_cap:
            tokens.append(model.decode([window])[0].tokens[-1])
        texts.append(model.tokenizer.decode(tokens, skip_special_tokens=True).strip())
    assert [each.text for each in alone] == texts
    assert together.text == " ".join(texts)
    assert together.at_cap == sum(each.at_cap for each in alone) == 1
    assert "<|" not in together.text


@pytest.mark.parametrize("batch", [1, 2, 3, 16])
def test_recordings_heard_together_are_those_heard_alone(model, windows, monkeypatch, batch):
    monkeypatch.setattr("fpspeech.models.whisper.BATCH", batch)
    recordings = [windows[:1], [], windows, windows[1:], windows * 2]
    decoded = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda given: decoded.append(len(given)) or decode(given))
    found = list(model.transcribe_all(iter(each) for each in recordings))
    assert max(decoded) <= batch
    assert sum(decoded) == sum(map(len, recordings))
    assert len(decoded) == -(-sum(decoded) // batch)  # every batch full but the last
    assert found == [model.transcribe(each) for each in recordings]
    assert found[1] == Transcript("", 0)


def test_recordings_are_read_no_further_than_a_batch(model, windows, monkeypatch):
    monkeypatch.setattr("fpspeech.models.whisper.BATCH", 2)
    read = []

    def recordings():
        for number in range(5):
            read.append(number)
            yield windows[:1]

    next(model.transcribe_all(recordings()))
    assert read == [0, 1]


def test_timestamps_are_never_heard(model):
    decoded = type(model.decode([torch.zeros(RATE)])[0])
    ids = model.tokenizer.convert_tokens_to_ids(["<|0.00|>", "b", "c", "<|0.02|>", "<|endoftext|>"])
    assert model._text(decoded(tuple(ids), 0.0, 0.0, False)) == "bc"


def test_transcribing_says_nothing_on_stderr(model, windows, caplog, capfd, recwarn):
    with caplog.at_level(logging.WARNING, logger="transformers"):
        model.transcribe(windows)
        model.observe(windows, Observer(every_layer(model)))
    assert capfd.readouterr().err == ""
    assert not caplog.records
    assert not list(recwarn)


def test_decoding_ends_where_stock_generate_would_not(folder, windows, tmp_path):
    """Lone timestamps move transformers' long-form window nowhere; here they are mere tokens."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "generation_config.json"
    settings = json.loads(path.read_text())
    names = load_speech_model(tmp_path, device="cpu").tokenizer.get_vocab()
    times = [names["<|0.00|>"], names["<|0.02|>"]]
    settings["suppress_tokens"] = [id for id in names.values() if id not in times]
    path.write_text(json.dumps(settings))
    model = load_speech_model(tmp_path, device="cpu")
    (decoded,) = model.decode(windows[:1])
    assert set(decoded.tokens) <= set(times)
    assert len(decoded.tokens) == model.max_new_tokens
    assert model.transcribe(windows[:1]) == Transcript("", at_cap=1)


@pytest.fixture
def endless(folder, tmp_path):
    """A checkpoint that may not end its text: only a cap ends it."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "generation_config.json"
    settings = json.loads(path.read_text())
    settings["suppress_tokens"] = [*settings["suppress_tokens"], settings["eos_token_id"]]
    path.write_text(json.dumps(settings))
    return tmp_path


def test_a_loop_in_english_goes_on_as_long_as_fast_speech_could(endless):
    """Ten tokens and ten a second, begun ones too; each window of a batch has its own cap."""
    model = load_speech_model(endless, device="cpu")
    windows = [torch.ones(samples) for samples in (8_000, 4_000, 1, 4_801, 30 * RATE)]
    lengths = [15, 13, 11, 14, 20]
    assert model.max_new_tokens == 20
    together = model.decode(windows)
    assert [len(each.tokens) for each in together] == lengths
    assert all(each.at_cap for each in together)
    for window, decoded in zip(windows, together, strict=True):
        assert model.hypothesis(window).tokens == decoded.tokens
        assert model.hypothesis(window).log_probability == pytest.approx(
            decoded.log_probability, rel=1e-4
        )
    german = load_speech_model(endless, device="cpu", language="de")
    assert [len(each.tokens) for each in german.decode(windows)] == [20] * 5


def test_an_output_that_ends_with_its_last_token_is_not_cut(model, windows, monkeypatch):
    decoded = model.decode(windows)
    place = next(i for i, each in enumerate(decoded) if not each.at_cap and len(each.tokens) > 1)
    ended = decoded[place]
    for most, cut in ((len(ended.tokens), False), (len(ended.tokens) - 1, True)):
        monkeypatch.setattr(model, "max_new_tokens", most)
        (decoded,) = model.decode(windows[place : place + 1])
        assert decoded.tokens == ended.tokens[:most]
        assert decoded.at_cap is cut


def test_a_window_over_30_seconds_is_refused_not_cut(model):
    assert model.window_seconds == 30.0
    with pytest.raises(ModelError, match=r"at most 30 s at once, found 30\.10 s"):
        model.transcribe([torch.zeros(int(30.1 * RATE))])


@pytest.mark.parametrize("language", ["de", "German", "de-AT", "DE"])
def test_a_multilingual_checkpoint_is_asked_in_one_language(folder, windows, language):
    model = load_speech_model(folder, device="cpu", language=language)
    names = model.tokenizer.convert_ids_to_tokens(model.prompt[0])
    assert names == ["<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"]
    stock = stock_tokens(model, windows[0], language="de", task="transcribe")
    assert model._fed(model.decode([windows[0]])[0]).tolist() == stock


def test_an_unknown_language_is_refused(folder, tmp_path):
    with pytest.raises(ModelError, match=r"no tokens for the language 'fr'.*it knows de, en"):
        load_speech_model(folder, device="cpu", language="fr")
    english = tiny_whisper(tmp_path, multilingual=False)
    with pytest.raises(ModelError, match="knows English only, found the language 'de'"):
        load_speech_model(english, device="cpu", language="de")


def test_an_english_checkpoint_with_other_mel_bins_has_no_language_token(tmp_path, windows):
    model = load_speech_model(
        tiny_whisper(tmp_path, multilingual=False, mel_bins=128), device="cpu"
    )
    names = model.tokenizer.convert_ids_to_tokens(model.prompt[0])
    assert names == ["<|startoftranscript|>", "<|notimestamps|>"]
    assert model._fed(model.decode([windows[0]])[0]).tolist() == stock_tokens(model, windows[0])
    model.observe(windows, Observer(every_layer(model)))


def test_the_prompt_of_an_old_generation_config_comes_from_the_vocabulary(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "generation_config.json"
    settings = json.loads(path.read_text())
    for name in ("lang_to_id", "task_to_id", "no_timestamps_token_id"):
        del settings[name]
    path.write_text(json.dumps(settings))
    new = load_speech_model(folder, device="cpu", language="de")
    assert load_speech_model(tmp_path, device="cpu", language="de").prompt.equal(new.prompt)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["preprocessor_config.json", "processor_config.json"], "no processor that loads"),
        (["tokenizer.json"], "its tokenizer knows"),
    ],
)
def test_a_folder_without_its_processor_is_refused(folder, tmp_path, files, said):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name in files:
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=said):
        load_speech_model(tmp_path, device="cpu")


def test_a_feature_extractor_of_another_model_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    other = tiny_whisper(tmp_path / "other", mel_bins=16)
    shutil.copy(other / "preprocessor_config.json", tmp_path)
    with pytest.raises(ModelError, match=r"takes 8 mel bins, its .* makes 16"):
        load_speech_model(tmp_path, device="cpu")


def test_a_checkpoint_without_a_decoder_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    network = WhisperForConditionalGeneration.from_pretrained(folder)
    weights = network.state_dict()
    kept = {name: weights[name] for name in weights if ".decoder.layers.1." not in name}
    network.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(ModelError, match=r"lacks weights .*model\.decoder\.layers\.1\."):
        load_speech_model(tmp_path, device="cpu")


def test_output_layer_and_embeddings_stay_dense_and_each_says_why(model):
    selection = select_layers(model.network, model.exclusions)
    reasons = {each.name: each.reason for each in selection.excluded}
    assert set(reasons) == {
        "model.encoder.conv1",
        "model.encoder.embed_positions",
        "model.decoder.embed_tokens",
        "model.decoder.embed_positions",
        "proj_out",
    }
    assert "first convolution" in reasons["model.encoder.conv1"]
    assert "token embedding" in reasons["proj_out"]
    assert model.network.proj_out.weight is model.network.model.decoder.embed_tokens.weight


def test_components_share_out_the_pruned_layers(model):
    layers = select_layers(model.network, model.exclusions).layers
    for layer in layers:
        parts = [
            part
            for part, patterns in model.components.items()
            if any(fnmatchcase(layer.name, pattern) for pattern in patterns)
        ]
        assert len(parts) == 1, layer.name
    overrides = tuple((pattern, 0.0) for pattern in model.components["decoder.ffn"])
    config = PruningConfig(0.5, score="magnitude", overrides=overrides)
    masks = make_masks(layers, {}, config)
    dense = {name for name, mask in masks.items() if bool(mask.all())}
    assert dense == {f"model.decoder.layers.{i}.{fc}" for i in (0, 1) for fc in ("fc1", "fc2")}


def test_the_whole_way_prune_hear_and_restore(model, windows, tmp_path):
    layers = select_layers(model.network, model.exclusions).layers
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    heard = model.transcribe(windows)
    masks = make_masks(layers, observed(model, [windows]), PruningConfig(0.7))
    assert sparsity_of(masks) == pytest.approx(0.7, abs=0.06)  # short rows round down
    with apply_masks(layers, masks):
        assert model.transcribe(windows).text != heard.text
        model.save_pretrained(tmp_path)
        pruned = model.network.state_dict()
        stock = WhisperForConditionalGeneration.from_pretrained(tmp_path)
        for name, tensor in stock.state_dict().items():
            assert torch.equal(tensor, pruned[name]), name
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert model.transcribe(windows) == heard


def test_a_saved_folder_is_stock(model, folder, windows, tmp_path):
    model.save_pretrained(tmp_path)
    stock = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    features, tokens = model._features(windows), model.prompt.repeat(3, 1)
    with torch.no_grad():
        expected = model.network(features, decoder_input_ids=tokens).logits
        assert torch.equal(stock(features, decoder_input_ids=tokens).logits, expected)
    assert keys(tmp_path) == keys(folder)
    assert generation_settings(tmp_path) == generation_settings(folder)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    again = load_speech_model(tmp_path, device="cpu")
    assert again.transcribe(windows) == model.transcribe(windows)


def keys(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def generation_settings(folder: Path) -> dict[str, object]:
    settings = json.loads((folder / "generation_config.json").read_text())
    del settings["transformers_version"]
    return settings


@pytest.fixture(scope="module")
def real_folder() -> Path:
    models, data = os.environ.get("FPSPEECH_MODELS"), os.environ.get("FPSPEECH_DATA")
    if not models or not data:
        pytest.skip("set FPSPEECH_MODELS and FPSPEECH_DATA to test on a real Whisper and speech")
    return Path(models) / "whisper-tiny.en-relearned"


def test_a_real_whisper_hears_words_of_a_real_utterance(real_folder):
    from fpspeech.corpora import read_audio
    from fpspeech.evaluation import text_normalizer, word_errors

    utterance, reference = librispeech_utterance()
    model = load_speech_model(real_folder, device="cpu")
    audio = read_audio(utterance)
    heard = model.transcribe([audio])
    errors = word_errors([utterance.stem], [reference], [heard.text], text_normalizer("en"))
    assert errors.hits / errors.words > 0.3, heard.text
    observer = Observer(select_layers(model.network, model.exclusions).layers)
    model.observe([audio], observer)
    frames = observer.statistics()["model.encoder.layers.0.fc1"].count
    assert frames == -(-audio.numel() // 320)


def test_a_real_whisper_is_written_as_a_stock_folder(real_folder, tmp_path):
    model = load_speech_model(real_folder, device="cpu")
    model.save_pretrained(tmp_path)
    assert keys(tmp_path) == keys(real_folder)
    assert generation_settings(tmp_path) == generation_settings(real_folder)
    tokens = list(range(0, model.network.config.vocab_size, 7))
    assert AutoTokenizer.from_pretrained(tmp_path).decode(tokens) == model.tokenizer.decode(tokens)


def librispeech_utterance() -> tuple[Path, str]:
    chapter = Path(os.environ["FPSPEECH_DATA"]) / "LibriSpeech" / "test-other" / "1688" / "142285"
    for line in (chapter / "1688-142285.trans.txt").read_text().splitlines():
        name, _, text = line.partition(" ")
        if (audio := chapter / f"{name}.flac").exists():
            return audio, text
    raise AssertionError(f"no utterance in {chapter}")
