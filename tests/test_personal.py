"""The artifact: exact, private, whole or not at all, and stock where it is merged."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor

from fpspeech import Config, Personal, PruningConfig, load_speech_model, merge, read_utterances
from fpspeech.corpora import read_audio
from fpspeech.output_folder import OutputError, whole_folder
from fpspeech.personal import PersonalError
from fpspeech.personalize_speech import personalize, plan
from fpspeech.pruning import PruningError

MASK_ALONE = PruningConfig(sparsity=0.7, score="fine_pruning", update="none")


@pytest.fixture(params=["tiny_group", "tiny_layer"])
def model(request):
    return load_speech_model(request.getfixturevalue(request.param), device="cpu")


@pytest.fixture
def utterances(speech):
    return [u for u in read_utterances(speech, speaker="ann") if u.split == "adapt"]


@pytest.fixture
def personal(model, utterances):
    config = Config(pruning=MASK_ALONE, allocation="uniform", refit_head=False)
    return personalize(model, utterances, config)


def state(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def assert_equal_states(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_personalize_leaves_the_model_as_it_was(model, utterances):
    before = state(model)
    personalize(model, utterances)
    assert_equal_states(state(model), before)
    assert not any(module._forward_pre_hooks for module in model.network.modules())


def test_every_row_loses_exactly_what_was_asked_where_nothing_is_allocated(personal):
    for name, mask in personal.masks.items():
        inputs = mask.shape[2]
        assert bool(((~mask).sum(-1) == int(inputs * 0.7 + 1e-6)).all()), name
    pruned = sum(int((~mask).sum()) for mask in personal.masks.values())
    assert personal.report["pruned_weights"] == pruned


def test_apply_and_restore_are_exact(model, personal, utterances):
    audio = read_audio(utterances[0].audio)
    before, dense = state(model), model.logits(audio)
    with personal.apply(model):
        applied = model.logits(audio)
        for name, mask in personal.masks.items():
            weight = dict(model.network.named_modules())[name].weight.reshape(mask.shape)
            assert not weight[~mask].any(), name
    assert not torch.equal(applied, dense)
    assert_equal_states(state(model), before)
    assert torch.equal(model.logits(audio), dense)
    with personal.apply(model):
        assert torch.equal(model.logits(audio), applied)


def test_updated_weights_are_saved_applied_and_restored_exactly(model, utterances, tmp_path):
    audio = read_audio(utterances[0].audio)
    before, dense = state(model), model.logits(audio)
    settings = PruningConfig(sparsity=0.7, score="fine_pruning", update="least_squares")
    personal = personalize(model, utterances, Config(pruning=settings))
    assert personal.kept.keys() == personal.masks.keys()
    alone = personalize(model, utterances, Config(pruning=MASK_ALONE))
    assert all(torch.equal(personal.masks[name], alone.masks[name]) for name in alone.masks)
    with personal.apply(model):
        updated = model.logits(audio)
    assert_equal_states(state(model), before)
    with alone.apply(model):
        pruned = model.logits(audio)
    assert (updated - dense).norm() < (pruned - dense).norm()
    personal.save(tmp_path / "ann")
    with Personal.load(tmp_path / "ann").apply(model):
        assert torch.equal(model.logits(audio), updated)
    foretold = plan(model, personal.config).artifact_bytes
    size = sum(path.stat().st_size for path in (tmp_path / "ann").iterdir())
    assert 0.5 * size < foretold < 2 * size


def test_two_personal_models_are_switched_in_memory(model, speech):
    people = {}
    for name in ("ann", "ben"):
        adapt = [u for u in read_utterances(speech, speaker=name) if u.split == "adapt"]
        people[name] = personalize(model, adapt)
    audio = read_audio(adapt[0].audio)
    logits = {}
    for name in ("ann", "ben", "ann"):
        with people[name].apply(model):
            heard = model.logits(audio)
        assert torch.equal(heard, logits.setdefault(name, heard))
    assert not torch.equal(logits["ann"], logits["ben"])


def test_saved_and_loaded_it_is_the_same(model, personal, utterances, tmp_path):
    personal.save(tmp_path / "ann")
    loaded = Personal.load(tmp_path / "ann")
    assert loaded.config == personal.config
    assert loaded.base == personal.base
    assert loaded.recordings == personal.recordings
    assert loaded.report == json.loads(json.dumps(dict(personal.report)))
    assert loaded.masks.keys() == personal.masks.keys()
    assert all(torch.equal(loaded.masks[name], mask) for name, mask in personal.masks.items())
    again = personalize(model, utterances, personal.config)
    again.save(tmp_path / "again")
    masks = [(tmp_path / name / "mask.safetensors").read_bytes() for name in ("ann", "again")]
    assert masks[0] == masks[1], "same input, same bits"


def test_the_mask_file_holds_one_bit_a_weight(personal, tmp_path):
    personal.save(tmp_path / "ann")
    packed = load_file(tmp_path / "ann" / "mask.safetensors")
    for name, mask in personal.masks.items():
        assert packed[name].numel() == (mask.numel() + 7) // 8
    assert not list((tmp_path / "ann").glob("*.bin"))
    assert not (tmp_path / "ann" / "values.safetensors").exists()


def test_the_artifact_tells_nothing_about_the_person(personal, utterances, tmp_path):
    personal.save(tmp_path / "ann")
    everything = b"".join(path.read_bytes() for path in (tmp_path / "ann").iterdir())
    secrets = [str(tmp_path), "LIGHT ON", "speech/", utterances[0].id, "adapt0"]
    for secret in secrets:
        assert secret.encode() not in everything, secret
    settings = (tmp_path / "ann" / "fpspeech.json").read_text()
    assert not re.search(r"\bann\b", settings)
    from fpspeech.corpora import fingerprint

    assert fingerprint(utterances[0].audio) not in settings, "hashes are salted"
    assert personal.recordings.holds(fingerprint(utterances[0].audio))


def test_merged_folder_loads_by_stock_code_with_identical_logits(
    model, personal, utterances, tmp_path
):
    audio = read_audio(utterances[0].audio)
    with personal.apply(model):
        applied = model.logits(audio)
    before = state(model)
    merge(personal, model, tmp_path / "merged")
    assert_equal_states(state(model), before)
    stock = Wav2Vec2ForCTC.from_pretrained(tmp_path / "merged").eval()
    processor = Wav2Vec2Processor.from_pretrained(tmp_path / "merged")
    features = processor(audio.numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(stock(features.input_values).logits[0], applied)
    base = load_file(model.source.folder / "model.safetensors")
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == base.keys()


def test_another_base_is_refused(personal, tiny_group, tiny_layer, model):
    other = tiny_layer if model.source.folder == tiny_group else tiny_group
    with pytest.raises(PersonalError, match="belongs to the base"):
        personal.apply(load_speech_model(other, device="cpu"))


def test_an_older_folder_is_kept_unless_told_otherwise(personal, tmp_path):
    personal.save(tmp_path / "ann")
    (tmp_path / "ann" / "note").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        personal.save(tmp_path / "ann")
    assert (tmp_path / "ann" / "note").exists()
    personal.save(tmp_path / "ann", overwrite=True)
    assert not (tmp_path / "ann" / "note").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_fails_leaves_nothing_behind(tmp_path):
    def write(folder):
        with whole_folder(folder, overwrite=True) as draft:
            (draft / "half").write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "whole").write_text("whole")
    with pytest.raises(RuntimeError):
        write(tmp_path / "old")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "whole"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "fpspeech.json").unlink(), "does not exist"),
        (lambda f: (f / "fpspeech.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "fpspeech.json").write_text('{"format": 99}'), "is of format 99"),
        (lambda f: (f / "mask.safetensors").write_bytes(b"x"), "cannot be read"),
    ],
)
def test_a_damaged_folder_is_an_error_that_names_the_file(personal, tmp_path, damage, message):
    personal.save(tmp_path / "ann")
    damage(tmp_path / "ann")
    with pytest.raises(PersonalError, match=message):
        Personal.load(tmp_path / "ann")


def test_components_have_a_sparsity_of_their_own(model, utterances):
    config = Config(components=(("encoder.ffn", 0.0), ("encoder.self_attn", 0.5)))
    masks = personalize(model, utterances, config).masks
    ffn = [mask for name, mask in masks.items() if "feed_forward" in name]
    attention = [mask for name, mask in masks.items() if ".attention." in name]
    assert ffn
    assert all(bool(mask.all()) for mask in ffn)
    assert all(bool(((~mask).sum(-1) == mask.shape[2] // 2).all()) for mask in attention)
    with pytest.raises(PruningError, match="no component 'decoder'"):
        personalize(model, utterances, Config(components=(("decoder", 0.5),)))


def test_the_report_lists_what_was_left_dense_and_why(personal):
    reasons = {each["name"]: each["reason"] for each in personal.report["excluded"]}
    assert reasons["lm_head"] == "output layer"
    assert "first convolution" in reasons["wav2vec2.feature_extractor.conv_layers.0.conv"]


def test_the_plan_foretells_the_size_of_the_folder(model, personal, tmp_path):
    personal.save(tmp_path / "ann")
    size = sum(path.stat().st_size for path in (tmp_path / "ann").iterdir())
    foretold = plan(model, personal.config).artifact_bytes
    assert 0.5 * size < foretold < 2 * size
    assert plan(model, personal.config).prunable == personal.report["prunable_weights"]
