"""The Hub as a corpus: local Parquet in its place, by the commands, by a recipe, by presets."""

import json
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from tiny_hub import dataset, row

from fpspeech.cli import main
from fpspeech.corpora import CorpusNotFound, ManifestError, find_corpus, read_utterances
from fpspeech.corpora.hub import PARQUET
from fpspeech.corpora.hub_corpus import PRESETS, HubOptions

HUB = find_corpus("hub")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def local(tmp_path) -> Path:
    """Two speakers with eight recordings each, in four chapters."""
    rows = [row(n, "ab"[n % 2], chapter=n // 4) for n in range(16)]
    dataset(tmp_path / "parquet", rows)
    return tmp_path / "parquet"


def test_is_streamed_once_and_found_again_by_the_same_options(tmp_path, local):
    options = {"dataset": str(local), "split": "train", "max_speaker_utterances": 4}
    with pytest.raises(CorpusNotFound, match="fpspeech prepare hub --download DIR"):
        HUB.utterances(tmp_path / "data", **options)
    root = HUB.fetch(tmp_path / "data", seed=5, **options)
    assert root.parent == tmp_path / "data" / "hub"
    before = {each: each.stat().st_mtime_ns for each in root.rglob("*")}
    assert HUB.fetch(tmp_path / "data", **options) == HUB.root(tmp_path / "data", **options) == root
    assert {each: each.stat().st_mtime_ns for each in root.rglob("*")} == before
    found = HUB.utterances(tmp_path / "data", **options)
    assert [each.speaker for each in found] == ["a"] * 4 + ["b"] * 4
    with pytest.raises(CorpusNotFound):  # more rows are another corpus
        HUB.root(tmp_path / "data", **{**options, "max_speaker_utterances": 5})
    with pytest.raises(ManifestError, match=r"'max_utterance' .did you mean 'max_utterances'"):
        HUB.root(tmp_path / "data", **options, max_utterance=1)


def test_is_split_anew_by_session_for_another_seed_or_share(tmp_path, local):
    options = {"dataset": str(local), "split": "train", "session": "chapter"}
    HUB.fetch(tmp_path, **options)
    splits = set()
    for seed in range(4):
        found = HUB.utterances(tmp_path, seed=seed, **options)
        by_chapter = {(each.speaker, int(each.id[2:]) // 4): set() for each in found}
        for each in found:
            by_chapter[each.speaker, int(each.id[2:]) // 4].add(each.split)
        assert all(len(sides) == 1 for sides in by_chapter.values())
        splits.add(tuple(each.split for each in found))
    assert len(splits) > 1
    assert {each.split for each in HUB.utterances(tmp_path, test_share=0, **options)} == {"adapt"}


def test_prepare_streams_and_writes_a_manifest(tmp_path, local, capsys):
    arguments = ["prepare", "hub", "--out", str(tmp_path / "manifest.jsonl")]
    for option in (f"dataset={local}", "split=train", "max_utterances=6"):
        arguments += ["--option", option]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 1
    assert "--download" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--download", str(tmp_path / "data")])
    assert not end.value.code
    assert "2 speakers, 6 utterances" in capsys.readouterr().out
    assert len(read_utterances(tmp_path / "manifest.jsonl", with_text=True)) == 6


def test_a_text_that_is_the_number_of_a_class_comes_as_its_name(tmp_path):
    dataset(tmp_path / "parquet", [row(n) | {"text": n % 2} for n in range(4)])
    features = {
        "audio": {"_type": "Audio"},
        "text": {"_type": "ClassLabel", "names": ["yes", "no"]},
    }
    features["speaker_id"] = {"_type": "Value", "dtype": "string"}
    said = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    for path in (tmp_path / "parquet").iterdir():
        pq.write_table(pq.read_table(path).replace_schema_metadata(said), path)
    options = {"dataset": str(tmp_path / "parquet"), "split": "train"}
    HUB.fetch(tmp_path, **options)
    assert [each.text for each in HUB.utterances(tmp_path, **options)] == ["yes", "no"] * 2


def test_rows_of_a_speaker_called_none_are_nobodys(tmp_path, caplog):
    dataset(tmp_path / "parquet", [row(n, "None" if n == 1 else "ann") for n in range(4)])
    HUB.fetch(tmp_path, dataset=str(tmp_path / "parquet"), split="train")
    assert "skipped 1, rows of no speaker: 1" in caplog.text


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_a_dataset_its_split_and_columns(preset):
    options = {"preset": preset, "name": "de_de"}
    opened = HubOptions.of(options).open()
    assert opened.path == PRESETS[preset]["dataset"]
    assert (opened.name, opened.data_dir, opened.revision) == (None, "de_de", PARQUET)
    assert opened.split
    assert HubOptions.of(options | {"split": "validation"}).open().split == "validation"


def test_a_preset_can_be_read_from_a_copy_of_its_dataset(tmp_path):
    rows = [{"audio": row(n)["audio"], "transcription": f"Satz {n}"} for n in range(8)]
    dataset(tmp_path / "parquet", rows)
    options = {"preset": "fleurs", "dataset": str(tmp_path / "parquet"), "split": "train"}
    HUB.fetch(tmp_path, **options)
    found = HUB.utterances(tmp_path, **options)
    assert {each.speaker for each in found} == {"parquet"}
    assert sorted(each.text for each in found) == [f"Satz {n}" for n in range(8)]
    assert {each.split for each in found} == {"adapt", "test"}


def test_what_is_not_said_is_asked_for(tmp_path):
    with pytest.raises(ManifestError, match=r"found 'flurs'; the nearest is 'fleurs'"):
        HUB.root(tmp_path, preset="flurs")
    with pytest.raises(ManifestError, match="expected the option name, the language of fleurs"):
        HUB.root(tmp_path, preset="fleurs")
    with pytest.raises(ManifestError, match="expected the options dataset and split"):
        HUB.root(tmp_path, dataset="openslr/librispeech_asr")
