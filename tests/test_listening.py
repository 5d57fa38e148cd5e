"""Streaming recordings: skipping, silence, memory, interruption and going on."""

import json

import numpy as np
import pytest
import soundfile
import torch

from fpspeech import listening
from fpspeech.corpora import Utterance, read_utterances
from fpspeech.listening import Interrupted, Listener, NothingHeardError, listen
from fpspeech.models import load_speech_model
from fpspeech.pruning import Observer, select_layers

RATE = 16_000


@pytest.fixture(params=["tiny_group", "tiny_layer"])
def model(request):
    return load_speech_model(request.getfixturevalue(request.param), device="cpu")


@pytest.fixture
def layers(model):
    return select_layers(model.network, dict(model.exclusions)).layers


def squares(heard):
    return {name: statistics.square for name, statistics in heard.statistics.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_unusable_recordings_are_skipped_with_a_line_each_and_counted(
    model, layers, speech, tmp_path
):
    good = read_utterances(speech, speaker="ann")[:2]
    nan = np.full(RATE, 0.1, dtype=np.float32)
    nan[50] = np.nan
    bad = {"silence only": np.zeros(RATE, dtype=np.float32), "contains NaN": nan}
    for reason, samples in bad.items():
        soundfile.write(tmp_path / f"{reason}.wav", samples, RATE, subtype="FLOAT")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "not audio.wav").write_text("these are words")
    whole = good[0].audio.read_bytes()
    (tmp_path / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    reasons = [*bad, "empty", "not audio", "truncated"]
    utterances = [*good, *(Utterance(r, tmp_path / f"{r}.wav", "ann") for r in reasons)]
    lines = []
    heard = listen(
        model,
        layers,
        utterances,
        listener=Listener(skipped=lambda skipped, message: lines.append(message)),
    )
    assert heard.skipped_by_reason == dict.fromkeys(reasons, 1)
    assert len(lines) == len(reasons)
    assert all(reason + ".wav" in line for reason, line in zip(reasons, lines, strict=True))
    assert_same(squares(heard), squares(listen(model, layers, good)))


def test_nothing_left_is_an_error_with_the_reasons(model, layers, tmp_path):
    soundfile.write(tmp_path / "quiet.wav", np.zeros(RATE), RATE)
    utterances = [Utterance("quiet", tmp_path / "quiet.wav", "ann")]
    with pytest.raises(NothingHeardError, match=r"of 1 recordings none.*\(1 silence only\)"):
        listen(model, layers, utterances)
    with pytest.raises(NothingHeardError, match="of 0 recordings"):
        listen(model, layers, [])


def test_a_recording_given_twice_counts_once(model, layers, speech):
    first = read_utterances(speech, speaker="ann")[0]
    copy = first.audio.with_name("copy.wav")
    copy.write_bytes(first.audio.read_bytes())
    heard = listen(model, layers, [first, Utterance("copy", copy, "ann")])
    assert heard.skipped_by_reason == {"same recording twice": 1}
    assert_same(squares(heard), squares(listen(model, layers, [first])))


def test_silent_windows_of_a_long_recording_are_left_out(model, layers, tmp_path):
    loud = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE)
    soundfile.write(tmp_path / "long.wav", np.concatenate([loud, np.zeros(2 * RATE)]), RATE)
    heard = listen(
        model, layers, [Utterance("long", tmp_path / "long.wav", "ann")], window_seconds=1.0
    )
    assert heard.silent_seconds == pytest.approx(2.0, abs=1.1)
    assert heard.seconds + heard.silent_seconds == pytest.approx(4.0, abs=0.01)


def test_long_files_are_cut_into_windows(model, layers, tmp_path, monkeypatch):
    lengths = []
    soundfile.write(
        tmp_path / "long.wav", 0.1 * np.random.default_rng(0).standard_normal(10 * RATE), RATE
    )
    monkeypatch.setattr(
        type(model), "observe", lambda self, windows, observer: lengths.extend(map(len, windows))
    )
    monkeypatch.setattr(Observer, "statistics", lambda self: {})
    utterances = [Utterance("long", tmp_path / "long.wav", "ann")]
    listen(model, layers, utterances, window_seconds=3.0)
    assert len(lengths) == 4
    assert max(lengths) <= 3 * RATE + 1
    assert sum(lengths) == 10 * RATE


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_interrupted_run_goes_on_to_the_same_bits(model, layers, speech, tmp_path, batch_size):
    utterances = read_utterances(speech, speaker="ann")
    options = {"window_seconds": 1.0, "batch_size": batch_size}
    options["products"] = frozenset(layer.name for layer in layers[-3:])
    whole = listen(model, layers, utterances, **options)
    checkpoint = tmp_path / "saved.safetensors"
    runs = 0
    windows = []
    while True:
        runs += 1
        seen = []

        def stop(seen=seen):
            windows.append(1)
            return len(seen) >= 2

        listener = Listener(heard=seen.append, stop=stop)
        try:
            heard = listen(
                model, layers, utterances, checkpoint=checkpoint, listener=listener, **options
            )
            break
        except Interrupted:
            assert checkpoint.is_file()
    assert runs > 1
    assert_same(squares(heard), squares(whole))
    for layer in layers[-3:]:
        found, expected = (each.statistics[layer.name].products for each in (heard, whole))
        assert torch.equal(found, expected)
    assert heard.seconds == whole.seconds
    assert heard.fingerprints == whole.fingerprints


def test_a_killed_run_goes_on_from_the_last_save(model, layers, speech, tmp_path, monkeypatch):
    monkeypatch.setattr(listening, "CHECKPOINT_SECONDS", 0.0)
    utterances = read_utterances(speech, speaker="ann")
    whole = listen(model, layers, utterances)
    checkpoint = tmp_path / "saved.safetensors"
    observe, calls = type(model).observe, []

    def killed(self, windows, observer):
        calls.append(1)
        if len(calls) == 4:
            observe(self, windows, observer)  # half-counted: this window must not be kept
            raise KeyboardInterrupt
        observe(self, windows, observer)

    monkeypatch.setattr(type(model), "observe", killed)
    with pytest.raises(KeyboardInterrupt):
        listen(model, layers, utterances, checkpoint=checkpoint)
    heard = listen(model, layers, utterances, checkpoint=checkpoint)
    assert len(calls) == 4 + len(utterances) - 3
    assert_same(squares(heard), squares(whole))


def test_statistics_of_another_run_are_not_gone_on_from(model, layers, speech, tmp_path):
    utterances = read_utterances(speech, speaker="ann")
    checkpoint = tmp_path / "saved.safetensors"
    with pytest.raises(Interrupted):
        listen(
            model,
            layers,
            utterances,
            checkpoint=checkpoint,
            window_seconds=1.0,
            listener=Listener(stop=lambda: True),
        )
    other = listen(model, layers, utterances, checkpoint=checkpoint, window_seconds=2.0)
    assert_same(squares(other), squares(listen(model, layers, utterances, window_seconds=2.0)))
    checkpoint.write_bytes(b"half a file")
    damaged = listen(model, layers, utterances, checkpoint=checkpoint, window_seconds=2.0)
    assert_same(squares(damaged), squares(other))


def test_transcripts_are_never_looked_at(model, layers, speech):
    """The same bits whatever the manifest says was spoken."""
    before = listen(model, layers, read_utterances(speech, speaker="ann"))
    manifest = speech / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines = "".join(json.dumps({**row, "text": "SOMETHING ELSE"}) + "\n" for row in rows)
    manifest.write_text(lines)
    after = listen(model, layers, read_utterances(speech, speaker="ann"))
    assert_same(squares(before), squares(after))
