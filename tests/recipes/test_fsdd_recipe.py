"""The FSDD recipe finds the corpus, says how to get it, and never trains on who is left out."""

import json
from pathlib import Path

import pytest
import soundfile

from fpspeech.corpora import ManifestError, find_corpus, read_utterances
from fpspeech.speech_recipe import read_speech_recipe
from fpspeech.speech_stages import run_speech_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path):
    """Three people, two digits, takes 0, 24, 25 and 49, in the corpus's own layout."""
    folder = tmp_path / "fsdd" / "recordings"
    folder.mkdir(parents=True)
    for speaker in ("theo", "nicolas", "lucas"):
        for digit in (0, 7):
            for take in (0, 24, 25, 49):
                samples = [0.1 * ((digit + take + i) % 7 - 3) / 3 for i in range(2000)]
                soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", samples, 8000)
    return folder.parent


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.delenv("FPSPEECH_DATA", raising=False)
    path = ROOT / "recipes" / "fsdd" / "fsdd.yaml"
    return read_speech_recipe(path).overruled({"exp": str(tmp_path / "exp")})


def test_without_the_corpus_it_says_how_to_get_it(tmp_path, recipe, tiny_group):
    with pytest.raises(ManifestError, match=r"recordings/0_theo_0\.wav.*git clone"):
        run_speech_recipe(recipe, 0, 0, {"data_dir": str(tmp_path), "model": str(tiny_group)})


@pytest.mark.parametrize("by", ["option", "variable"])
def test_the_manifest_splits_the_left_out_speakers_by_take(
    tmp_path, corpus, recipe, tiny_group, by, monkeypatch
):
    changes = {"model": str(tiny_group)}  # which is not to be trained
    if by == "option":
        changes["data_dir"] = str(corpus)
    else:
        monkeypatch.setenv("FPSPEECH_DATA", str(corpus.parent))
    run_speech_recipe(recipe, 0, 0, changes)
    utterances = read_utterances(tmp_path / "exp" / "manifest.jsonl", with_text=True)
    assert {utterance.speaker for utterance in utterances} == {"theo", "nicolas"}
    for utterance in utterances:
        digit, _, take = utterance.audio.stem.split("_")
        assert utterance.split == ("adapt" if int(take) < 25 else "test")
        assert utterance.text == {"0": "ZERO", "7": "SEVEN"}[digit]


def test_the_base_model_is_trained_on_the_others_alone(tmp_path, corpus, recipe):
    from recipes.fsdd.train import LEFT_OUT, write_training_manifest

    assert set(recipe.corpus.options["speakers"]) == set(LEFT_OUT)
    path = tmp_path / "exp" / "training.jsonl"
    write_training_manifest(path, corpus)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["speaker"] for row in rows} == {"lucas"}
    assert len(rows) == 8
    assert all(Path(row["audio"]).is_file() for row in rows)


def test_a_speaker_there_is_not(corpus):
    with pytest.raises(ManifestError, match=r"'ann', found those of lucas, nicolas, theo"):
        find_corpus("fsdd").utterances(corpus, speakers=["theo", "ann"])


def test_whole_speakers_can_be_held_out_to_tune_on(tmp_path, corpus, monkeypatch):
    """They validate, all of them, and are neither trained on nor in the generic numbers."""
    from recipes.fsdd import train

    recordings = [
        train.Recording(f"{name}-0-{take:02}", "a.wav", name, "ZERO", "train")
        for name in ("george", "jackson", "lucas", "yweweler")
        for take in (0, 24)
    ]
    manifest = tmp_path / "training.jsonl"
    train.write_manifest(manifest, recordings)
    stored, heard = {}, []
    monkeypatch.setattr(train, "_read", lambda found, exp: iter(found))
    monkeypatch.setattr(
        train, "write_audio_store", lambda folder, found: stored.update({folder.name: list(found)})
    )
    train.write_stores(manifest, tmp_path, 0, ["lucas", "george"])
    assert {each.speaker for each in stored["validation"]} == {"lucas", "george"}
    assert len(stored["validation"]) == 4
    assert {each.speaker for each in stored["training"]} == {"jackson", "yweweler"}

    class Moments:
        def save(self, path):
            pass

    monkeypatch.setattr(train, "load_speech_model", lambda *args, **options: None)
    monkeypatch.setattr(train, "at_most", lambda utterances, minutes: list(utterances))
    monkeypatch.setattr(
        train, "measure_generic", lambda model, found: heard.extend(found) or Moments()
    )
    train.write_generic(tmp_path, manifest, ["lucas", "george"])
    assert {each.speaker for each in heard} == {"jackson", "yweweler"}
    train.write_stores(manifest, tmp_path, 0, [])
    assert sorted(each.id for each in stored["validation"]) == [
        f"{name}-0-00" for name in ("george", "jackson", "lucas", "yweweler")
    ]
