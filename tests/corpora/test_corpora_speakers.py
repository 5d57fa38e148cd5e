from pathlib import Path

import numpy as np
import pytest
import soundfile

from fpspeech.corpora import SpeakerSummary, Utterance, summarise_speakers


def recorded(folder: Path, name: str, seconds: float) -> Path:
    path = folder / name
    soundfile.write(path, np.full(round(seconds * 8_000), 0.1), 8_000)
    return path


def test_counts_each_speaker_and_tolerates_unusable_files(tmp_path):
    text = tmp_path / "text.wav"
    text.write_text("not audio")
    corpus = [
        Utterance("b1", recorded(tmp_path, "b1.flac", 0.5), "bob"),
        Utterance("a1", recorded(tmp_path, "a1.wav", 1.0), "ann", "hello", "adapt"),
        Utterance("a2", recorded(tmp_path, "a2.wav", 2.0), "ann", None, "test"),
        Utterance("a3", text, "ann", None, "test"),
        Utterance("a4", tmp_path / "none.wav", "ann"),
        Utterance("a5", recorded(tmp_path, "a5.wav", 0.0), "ann"),
    ]
    assert summarise_speakers(corpus) == [
        SpeakerSummary("ann", 5, 3.0, adapt=1, test=2, transcribed=1, unusable=3),
        SpeakerSummary("bob", 1, 0.5, adapt=0, test=0, transcribed=0, unusable=0),
    ]


def test_reads_headers_only(tmp_path, monkeypatch):
    path = recorded(tmp_path, "a.wav", 1.0)
    monkeypatch.setattr(soundfile.SoundFile, "read", pytest.fail)
    assert summarise_speakers([Utterance("a", path, "ann")])[0].seconds == 1.0


def test_no_utterances_no_speakers():
    assert summarise_speakers([]) == []
