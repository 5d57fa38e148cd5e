import hashlib
import math
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from fpspeech.corpora import (
    SILENCE_DBFS,
    UnusableAudio,
    inspect_recording,
    is_silent,
    read_audio,
    read_windows,
)

RATE = 16_000


def noise(seconds=1.0, rate=RATE, channels=1, level=0.1):
    shape = (round(seconds * rate), channels)
    return (level * np.random.default_rng(0).uniform(-1, 1, shape)).astype(np.float32)


def write(path: Path, samples, rate=RATE, **options) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


def refusal(path: Path, **options) -> UnusableAudio:
    with pytest.raises(UnusableAudio) as caught:
        inspect_recording(path, **options)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    assert "expected" in str(caught.value)
    assert "found" in str(caught.value)
    return caught.value


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("channels", [1, 2])
def test_describes_wav_of_every_kind(tmp_path, rate, subtype, channels):
    path = write(tmp_path / "a.wav", noise(0.5, rate, channels), rate, subtype=subtype)
    recording = inspect_recording(path)
    assert recording.path == path
    assert (recording.sampling_rate, recording.channels) == (rate, channels)
    assert recording.seconds == 0.5
    assert recording.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3", "a.aiff", "A.WAV"])
def test_reads_the_other_formats(tmp_path, name):
    original = noise(3.0)
    path = write(tmp_path / name, original)
    recording = inspect_recording(path)
    assert recording.seconds == pytest.approx(3.0, abs=0.1)
    audio = read_audio(path)
    if name.endswith((".flac", ".aiff", ".WAV")):
        torch.testing.assert_close(audio, torch.from_numpy(original[:, 0]), atol=1e-4, rtol=0)


def test_reads_opus(tmp_path):
    path = write(tmp_path / "a.opus", noise(1.0), format="OGG", subtype="OPUS")
    assert inspect_recording(path).seconds == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    "name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.aiff", "a.w.rf64", "b.wav"]
)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_refuses_a_truncated_file(tmp_path, name, share):
    options = {
        "a.opus": {"format": "OGG", "subtype": "OPUS"},
        "a.w.rf64": {"format": "RF64"},
        "b.wav": {"subtype": "FLOAT", "endian": "BIG"},
    }.get(name, {})
    path = write(tmp_path / name, noise(3.0), **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert refusal(path).reason == "truncated"


def test_takes_what_decodes_of_a_shortened_mp3(tmp_path):
    path = write(tmp_path / "a.mp3", noise(3.0))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    recording = inspect_recording(path)
    assert 1.5 < recording.seconds < 3.0
    assert sum(map(len, read_windows(recording))) == recording.frames


def test_refuses_a_flac_damaged_inside(tmp_path):
    path = write(tmp_path / "a.flac", noise(3.0))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = b"\x55" * 2000
    path.write_bytes(content)
    assert refusal(path).reason == "truncated"


@pytest.mark.parametrize("outer", [0, 36, 0xFFFFFFFF])
@pytest.mark.parametrize("inner", [0, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_streamed_wav_headers_are_legal(tmp_path, outer, inner):
    path = write(tmp_path / "a.wav", noise(1.0))
    whole = read_audio(path)
    content = bytearray(path.read_bytes())
    content[4:8] = struct.pack("<I", outer)
    content[40:44] = struct.pack("<I", inner)
    path.write_bytes(content)
    assert inspect_recording(path).seconds == 1.0
    assert torch.equal(read_audio(path), whole)


def test_a_streamed_flac_of_unknown_length_is_legal(tmp_path):
    path = write(tmp_path / "a.flac", noise(1.0))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert inspect_recording(path).seconds == 1.0


def test_refuses_what_is_not_audio(tmp_path):
    for name in ("a.wav", "a.flac", "a.mp3", "a.raw"):
        path = tmp_path / name
        path.write_text("once upon a time\n" * 50)
        error = refusal(path)
        assert error.reason == "not audio"
        assert "convert it" in str(error)


def test_refuses_files_with_no_sound(tmp_path):
    nothing = tmp_path / "nothing.wav"
    nothing.touch()
    assert refusal(nothing).reason == "empty"
    header = write(tmp_path / "header.wav", noise(0))
    assert refusal(header).reason == "empty"
    tagged = tmp_path / "tagged.wav"  # closed, of no sound, with a chunk of tags after it
    body = header.read_bytes()[:44] + b"LIST" + struct.pack("<I", 4) + b"INFO"
    tagged.write_bytes(body[:4] + struct.pack("<I", len(body) - 8) + body[8:])
    assert refusal(tagged).reason == "empty"


def test_refuses_a_missing_file_and_a_folder(tmp_path):
    assert refusal(tmp_path / "none.wav").reason == "missing"
    assert refusal(tmp_path).reason == "unreadable"


@pytest.mark.parametrize(
    ("value", "reason"), [(math.nan, "contains NaN"), (-math.inf, "contains infinity")]
)
def test_refuses_samples_that_are_not_finite(tmp_path, value, reason):
    samples = noise(1.0, channels=2)
    samples[8_000, 1] = value
    error = refusal(write(tmp_path / "a.wav", samples, subtype="FLOAT"))
    assert error.reason == reason
    assert "at 0.500 s" in str(error)


@pytest.mark.parametrize("offset", [0.0, 0.2])
def test_refuses_silence_whatever_its_offset(tmp_path, offset):
    amplitude = 10 ** (SILENCE_DBFS / 20)
    quiet = offset + noise(1.0, level=0.9 * amplitude)
    loud = offset + noise(1.0, level=1.2 * amplitude)
    error = refusal(write(tmp_path / "quiet.wav", quiet, subtype="FLOAT"))
    assert error.reason == "silence only"
    assert "-60 dBFS" in str(error)
    inspect_recording(write(tmp_path / "loud.wav", loud, subtype="FLOAT"))
    assert is_silent(torch.from_numpy(quiet[:, 0]))
    assert not is_silent(torch.from_numpy(loud[:, 0]))


def test_nothing_at_all_is_silent():
    assert is_silent(torch.zeros(0))
    assert is_silent(torch.zeros(10))


def test_refuses_a_very_short_file(tmp_path):
    path = write(tmp_path / "a.wav", noise(0.05))
    error = refusal(path)
    assert error.reason == "too short"
    assert "0.050 s" in str(error)
    assert inspect_recording(path, min_seconds=0.05).seconds == 0.05
    assert read_audio(path).shape == (800,)


def test_the_error_survives_pickling(tmp_path):
    error = refusal(tmp_path / "none.wav")
    again = pickle.loads(pickle.dumps(error))
    assert (again.path, again.reason, str(again)) == (error.path, error.reason, str(error))


def test_a_long_file_is_read_in_even_windows_and_little_memory(tmp_path):
    rate, seconds = 8_000, 605
    path = tmp_path / "long.wav"
    minute = (0.1 * noise(60, rate) * 2**15).astype(np.int16)
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
        for _ in range(10):
            file.write(minute)
        file.write(minute[: 5 * rate])
    tracemalloc.start()
    lengths = [len(window) for window in read_windows(path, sampling_rate=rate)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(lengths) == math.ceil(seconds / 20)
    assert sum(lengths) == seconds * rate
    assert max(lengths) <= 20 * rate
    assert max(lengths) - min(lengths) <= 2 * 0.5 * rate
    assert peak < 8 * 20 * rate * 4  # a few windows, where the file is thirty


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0, 2.5, 4.9, 5.0, 5.1])
@pytest.mark.parametrize("window_seconds", [0.7, 1.0, 2.5])
def test_windows_abut_exactly_at_the_rate_of_the_file(tmp_path, seconds, window_seconds):
    path = write(tmp_path / "a.wav", noise(seconds, 11_025, 2), 11_025, subtype="FLOAT")
    windows = list(read_windows(path, sampling_rate=11_025, window_seconds=window_seconds))
    assert torch.equal(torch.cat(windows), read_audio(path, 11_025))
    assert len(windows) == math.ceil(round(seconds / window_seconds, 9))
    assert max(map(len, windows)) <= math.ceil(window_seconds * 11_025)


def test_resampled_windows_keep_the_total_length(tmp_path):
    path = write(tmp_path / "a.wav", noise(5, 44_100), 44_100)
    windows = list(read_windows(path, window_seconds=1.3))
    assert abs(sum(map(len, windows)) - 5 * RATE) <= len(windows)
    assert all(window.dtype == torch.float32 and window.ndim == 1 for window in windows)


def test_cuts_in_the_pause_near_the_even_cut(tmp_path):
    samples = noise(6.0)
    pause = slice(round(3.2 * RATE), round(3.3 * RATE))
    samples[pause] = 0
    first, _ = read_windows(write(tmp_path / "a.wav", samples), window_seconds=5.0)
    assert pause.start <= len(first) <= pause.stop


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_frequency_and_level(tmp_path, rate):
    hertz, level = 1_000, 0.25
    sine = level * np.sin(2 * np.pi * hertz * np.arange(2 * rate) / rate)
    audio = read_audio(write(tmp_path / "a.wav", sine, rate, subtype="FLOAT"))
    assert audio.shape == (2 * RATE,)
    middle = audio[RATE // 2 : RATE // 2 + RATE]
    spectrum = torch.fft.rfft(middle).abs() / (RATE / 2)
    assert int(spectrum.argmax()) == hertz
    assert float(spectrum.max()) == pytest.approx(level, rel=0.01)


def test_stereo_becomes_the_mean(tmp_path):
    samples = noise(1.0, channels=2)
    audio = read_audio(write(tmp_path / "a.wav", samples, subtype="FLOAT"))
    np.testing.assert_allclose(audio.numpy(), samples.mean(axis=1), atol=1e-7)


def test_says_when_a_file_changed_since_it_was_inspected(tmp_path):
    path = write(tmp_path / "a.wav", noise(2.0))
    recording = inspect_recording(path)
    write(path, noise(1.0))
    with pytest.raises(UnusableAudio, match="inspect it again"):
        list(read_windows(recording))
    write(path, noise(2.0, 8_000), 8_000)
    with pytest.raises(UnusableAudio, match="8000 Hz"):
        list(read_windows(recording))


def test_refuses_bad_arguments_before_the_first_window(tmp_path):
    path = write(tmp_path / "a.wav", noise())
    with pytest.raises(ValueError, match="sampling_rate"):
        read_windows(path, sampling_rate=0)
    for seconds in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="window_seconds"):
            read_windows(path, window_seconds=seconds)
    with pytest.raises(UnusableAudio, match="missing"):
        read_windows(tmp_path / "none.wav")
