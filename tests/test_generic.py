"""Generic numbers: measured, written, read, and what must not be in them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from fpspeech import generic as generic_module
from fpspeech.corpora import Utterance, read_audio, read_utterances
from fpspeech.generic import (
    BESIDE_MODEL,
    FORMAT,
    Generic,
    GenericError,
    find_generic,
    in_turns,
    measure_generic,
)
from fpspeech.listening import Interrupted, Listener, NothingHeardError, listen
from fpspeech.models import load_speech_model
from fpspeech.pruning import FeatureObserver, select_layers

RATE = 16_000


@pytest.fixture(params=["tiny_group", "tiny_layer", "tiny_whisper_folder"])
def model(request):
    return load_speech_model(request.getfixturevalue(request.param), device="cpu")


@pytest.fixture
def heard(tiny_layer):
    return load_speech_model(tiny_layer, device="cpu")


@pytest.fixture
def utterances(speech):
    return read_utterances(speech)


def sites_of(model):
    return [site for group in model.sites.values() for site in group]


def layers_of(model):
    return select_layers(model.network, dict(model.exclusions)).layers


def test_the_moments_are_those_of_all_recordings(model, utterances):
    observer = FeatureObserver(model.network, sites_of(model))
    for utterance in utterances:
        model.listen([torch.as_tensor(read_audio(utterance.audio, RATE))], observer)
    found = measure_generic(model, utterances)
    expected = observer.moments()
    assert list(found.moments) == [site.name for site in sites_of(model)]
    for name, moments in found.moments.items():
        assert moments.count == expected[name].count
        torch.testing.assert_close(moments.mean, expected[name].mean)
        torch.testing.assert_close(moments.covariance, expected[name].covariance)
    assert found.statistics == {}
    assert (found.base, found.speakers) == (model.source.sha256, 2)
    assert found.seconds == pytest.approx(sum(soundfile.info(u.audio).duration for u in utterances))


def test_with_layers_their_inputs_are_counted_in_the_same_pass(model, utterances):
    layers = layers_of(model)
    names = frozenset(layer.name for layer in layers[:2])
    some = utterances[:3]
    found = measure_generic(model, some, layers, products=names, product_stride=2)
    plain = measure_generic(model, some)
    expected = listen(model, layers, some, products=names, product_stride=2).statistics
    assert found.statistics.keys() == expected.keys()
    for name, statistics in expected.items():
        assert found.statistics[name].count == statistics.count
        assert torch.equal(found.statistics[name].square, statistics.square)
        assert (found.statistics[name].products is not None) == (name in names)
    for name, moments in plain.moments.items():
        assert found.moments[name].count == moments.count
        torch.testing.assert_close(found.moments[name].covariance, moments.covariance)


def assert_same(found, expected):
    assert found.base == expected.base
    assert found.speakers == expected.speakers
    assert found.seconds == pytest.approx(expected.seconds, abs=1e-3)
    assert found.moments.keys() == expected.moments.keys()
    for name, moments in expected.moments.items():
        assert found.moments[name].count == moments.count
        assert torch.equal(found.moments[name].mean, moments.mean)
        assert found.moments[name].covariance.dtype == torch.float64
        # Covariances are written in float32.
        assert torch.equal(found.moments[name].covariance.float(), moments.covariance.float())
    assert found.statistics.keys() == expected.statistics.keys()
    for name, statistics in expected.statistics.items():
        assert found.statistics[name].count == statistics.count
        assert torch.equal(found.statistics[name].total, statistics.total)
        assert torch.equal(found.statistics[name].absolute, statistics.absolute)
        products = found.statistics[name].products
        assert (products is None) == (statistics.products is None)
        assert products is None or torch.equal(products, statistics.products)


def test_what_is_written_is_what_is_read(heard, utterances, tmp_path):
    layers = layers_of(heard)
    names = frozenset([layers[0].name])
    generic = measure_generic(heard, utterances[:4], layers, products=names)
    path = tmp_path / "deep" / "generic.safetensors"
    generic.save(path)
    assert_same(Generic.load(path), generic)
    assert os.listdir(path.parent) == [path.name]
    first = path.read_bytes()
    Generic.load(path).save(path)
    assert path.read_bytes() == first


def test_no_path_no_name_and_no_transcript_is_in_the_file(heard, tmp_path):
    folder = tmp_path / "secretfolder"
    folder.mkdir()
    rows = []
    for number, speaker in enumerate(("anastasia", "bartholomew")):
        time = np.arange(RATE) / RATE
        soundfile.write(
            folder / f"clip-of-{speaker}.wav", 0.3 * np.sin(2 * np.pi * 200 * time + number), RATE
        )
        row = {"audio": f"clip-of-{speaker}.wav", "speaker": speaker, "id": f"idof-{speaker}"}
        rows.append(json.dumps(row | {"text": "XYLOPHONES AT MIDNIGHT"}))
    (folder / "manifest.jsonl").write_text("\n".join(rows))
    generic = measure_generic(heard, read_utterances(folder, with_text=True), layers_of(heard))
    generic.save(tmp_path / "generic.safetensors")
    content = (tmp_path / "generic.safetensors").read_bytes().lower()
    assert heard.source.sha256.encode() in content  # the test can see what is there
    for word in (
        "anastasia", "bartholomew", "xylophones", "midnight", "secretfolder", "clip-of", "idof",
        ".wav", str(tmp_path).lower(), heard.source.folder.name.lower(),
    ):  # fmt: skip
        assert word.encode() not in content, word


def test_the_file_appears_whole_or_not_at_all(heard, utterances, tmp_path, monkeypatch):
    generic = measure_generic(heard, utterances[:2])
    path = tmp_path / "generic.safetensors"
    generic.save(path)
    before = path.read_bytes()

    def half(tensors, draft, metadata):
        Path(draft).write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(generic_module, "save_file", half)
    with pytest.raises(OSError, match="no space left"):
        generic.save(path)
    assert path.read_bytes() == before


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(GenericError, match=f"{path} does not exist: .*`fpspeech generic`"):
            Generic.load(path)


def facts(**changes):
    values = {"format": FORMAT, "base": "b", "seconds": 1.0, "speakers": 1, "counts": {}}
    return {"fpspeech": json.dumps(values | changes)}


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"fpspeech": "{half"},
        {"fpspeech": "[1]"},
        facts(counts={"norm": 3}),  # whose mean is missing
        facts(counts=[1]),
        {"fpspeech": json.dumps({"format": FORMAT})},
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, metadata):
    path = tmp_path / "generic.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(GenericError, match=r"generic\.safetensors holds no generic numbers"):
        Generic.load(path)


def test_a_corrupt_file_is_named(heard, utterances, tmp_path):
    path = tmp_path / "generic.safetensors"
    measure_generic(heard, utterances[:1]).save(path)
    whole = path.read_bytes()
    for content in (b"", b"not tensors", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(GenericError, match=r"generic\.safetensors holds no generic numbers"):
            Generic.load(path)


def test_statistics_that_do_not_fit_together_are_named(tmp_path):
    path = tmp_path / "generic.safetensors"
    save_file({"layer:fc1:counts": torch.tensor([3, 0])}, path, metadata=facts())
    with pytest.raises(GenericError, match=r"generic.safetensors holds no .*'fc1' lack"):
        Generic.load(path)


def test_another_format_is_named(tmp_path):
    path = tmp_path / "generic.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata=facts(format=99))
    with pytest.raises(GenericError, match=r"is of format 99, this version reads 1: make it again"):
        Generic.load(path)


def test_numbers_of_another_base_are_refused(heard, tiny_group, utterances, tmp_path):
    generic = measure_generic(heard, utterances[:1])
    generic.check(heard)
    other = load_speech_model(tiny_group, device="cpu")
    match = f"SHA-256 {heard.source.sha256[:12]}.* found tiny-group .{other.source.sha256[:12]}"
    with pytest.raises(GenericError, match=match):
        generic.check(other)
    generic.save(tmp_path / "generic.safetensors")
    with pytest.raises(GenericError, match=match):
        find_generic(other, tmp_path / "generic.safetensors")


def test_numbers_are_found_where_they_are_given_or_beside_the_model(
    tiny_layer, utterances, tmp_path
):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_layer.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    model = load_speech_model(folder, device="cpu")
    assert find_generic(model, None) is None
    measure_generic(model, utterances[:2]).save(folder / BESIDE_MODEL)
    measure_generic(model, utterances[:1]).save(tmp_path / "given.safetensors")
    beside, given = find_generic(model, None), find_generic(model, tmp_path / "given.safetensors")
    assert beside.seconds > given.seconds
    # It is no part of the weights, so the model stays the base that it was.
    assert load_speech_model(folder, device="cpu").source.sha256 == model.source.sha256


def test_silence_and_what_cannot_be_used_do_not_count(heard, utterances, tmp_path):
    soundfile.write(tmp_path / "quiet.wav", np.zeros(RATE), RATE)
    quiet = Utterance("quiet", tmp_path / "quiet.wav", "carl")
    skipped = []
    listener = Listener(skipped=lambda each, message: skipped.append(each.id))
    found = measure_generic(heard, [*utterances[:2], quiet], listener=listener)
    assert_same(found, measure_generic(heard, utterances[:2]))
    assert skipped == ["quiet"]
    assert found.speakers == 1  # carl was not heard
    with pytest.raises(NothingHeardError, match="of 1 recordings none"):
        measure_generic(heard, [quiet])


def test_measuring_can_be_stopped(heard, utterances):
    times = []
    listener = Listener(heard=times.append, stop=lambda: len(times) == 2)
    with pytest.raises(Interrupted, match="minutes of audio"):
        measure_generic(heard, utterances, listener=listener)
    assert len(times) == 2


def test_speakers_take_turns_in_an_order_from_the_seed():
    utterances = [
        Utterance(f"{speaker}{number}", Path("x"), speaker)
        for speaker, count in (("b", 3), ("a", 5), ("c", 1))
        for number in range(count)
    ]
    found = in_turns(utterances)
    assert [each.speaker for each in found] == [*"abc", *"ab", *"ab", "a", "a"]
    assert sorted(each.id for each in found) == sorted(each.id for each in utterances)
    assert in_turns(utterances) == found
    # The order of the list says nothing about who comes first.
    assert [each.speaker for each in in_turns(utterances[::-1])] == [each.speaker for each in found]
    orders = {tuple(each.id for each in in_turns(utterances, seed)) for seed in range(5)}
    assert len(orders) > 1
