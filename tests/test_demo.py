"""The demo that the repository carries: what it must hold, and that it works from end to end."""

import json
from collections import Counter

import pytest
import soundfile

from fpspeech.cli import main
from fpspeech.corpora import fingerprint, read_utterances
from fpspeech.demo import DemoMissingError, demo_folder, demo_model


@pytest.fixture(scope="module")
def utterances():
    return read_utterances(demo_folder(), with_text=True)


def test_there_are_six_speakers_with_thirty_recordings_to_adapt_and_thirty_to_test(utterances):
    counts = Counter((utterance.speaker, utterance.split) for utterance in utterances)
    speakers = {speaker for speaker, _ in counts}
    assert len(speakers) >= 6
    for speaker in speakers:
        assert counts[speaker, "adapt"] >= 30
        assert counts[speaker, "test"] >= 30


def test_nobody_is_tested_on_a_sentence_or_recording_they_adapted_with(utterances):
    for speaker in {utterance.speaker for utterance in utterances}:
        mine = [utterance for utterance in utterances if utterance.speaker == speaker]
        texts, files = (
            {split: {value(u) for u in mine if u.split == split} for split in ("adapt", "test")}
            for value in (lambda u: u.text, lambda u: fingerprint(u.audio))
        )
        assert not texts["adapt"] & texts["test"]
        assert not files["adapt"] & files["test"]


def test_recordings_are_flac_at_16_khz_with_whole_sentences(utterances):
    for utterance in utterances[::25]:
        header = soundfile.info(utterance.audio)
        assert (header.format, header.samplerate, header.channels) == ("FLAC", 16_000, 1)
        assert len(utterance.text.split()) >= 2


def test_the_demo_is_small():
    sizes = [path.stat().st_size for path in demo_folder().rglob("*") if path.is_file()]
    assert sum(sizes) < 20e6
    assert (demo_model() / "model.safetensors").stat().st_size < 6e6


def test_the_voices_are_held_out_of_training():
    voices = pytest.importorskip("recipes.demo.voices")
    trained = {voices.training_voice(voices.random.Random(seed)).name for seed in range(3000)}
    for speaker in voices.DEMO_SPEAKERS:
        assert speaker.voice.name not in trained


def test_personalize_and_evaluate_work_on_the_demo_by_default(capsys, tmp_path):
    out = str(tmp_path / "aria")
    main_ok("personalize", "--speaker", "aria", "--sparsity", "0.3", "--out", out, "--json")
    made = json.loads(capsys.readouterr().out)
    assert made["recordings"] >= 30
    assert made["sparsity"] == pytest.approx(0.3, abs=0.01)
    main_ok("evaluate", out, "--json")
    measured = json.loads(capsys.readouterr().out)
    assert measured["recordings"] >= 30
    assert measured["already_heard"] == 0
    # An unseen voice: far from perfect, far from nothing heard.
    assert 0 < measured["dense"]["wer"] < 0.7
    assert abs(measured["difference"]) < 0.3


def main_ok(*arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert not end.value.code


def test_without_the_demo_the_error_says_where_it_is_expected(tmp_path, monkeypatch):
    import fpspeech.demo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fpspeech.demo, "__file__", str(tmp_path / "site" / "demo.py"))
    with pytest.raises(DemoMissingError, match="in a clone of the repository"):
        demo_folder()
