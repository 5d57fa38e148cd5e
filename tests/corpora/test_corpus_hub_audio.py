import json
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from tiny_hub import RATE, dataset, encoded, row

from fpspeech.corpora import ManifestError, read_audio, read_utterances
from fpspeech.corpora.hub_audio import AudioDataset, save_hub_audio


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_saves_recordings_and_a_manifest(tmp_path):
    rows = [row(number, speaker) for number, speaker in enumerate(["ann", 7, "../b.n", "ann"])]
    rows[1]["audio"]["bytes"] = encoded(0.5, 1, "WAV")
    rows = [{**each, "speaker_id": str(each["speaker_id"])} for each in rows]
    found = save_hub_audio(dataset(tmp_path / "data", rows), tmp_path / "out")
    assert [(each.id, each.text) for each in found] == [
        ("../b.n/0000002", "Words 2"),
        ("7/0000001", "Words 1"),
        ("ann/0000000", "Words 0"),
        ("ann/0000003", "Words 3"),
    ]
    assert found[0].audio == tmp_path / "out" / "%2E%2E%2Fb%2En" / "0000002.flac"
    assert found[1].audio.name == "0000001.wav"
    assert found[2].audio.read_bytes() == rows[0]["audio"]["bytes"]
    assert read_audio(found[2].audio).shape == (RATE // 2,)
    again = read_utterances(tmp_path / "out", with_text=True)
    assert [(each.id, each.split) for each in again] == [(each.id, each.split) for each in found]
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert all(not Path(json.loads(line)["audio"]).is_absolute() for line in lines)
    with pytest.raises(ManifestError, match="without a manifest, found one"):
        save_hub_audio(dataset(tmp_path / "data", rows), tmp_path / "out")


def test_limits(tmp_path):
    source = dataset(tmp_path / "data", [row(n, "ann" if n % 2 else "ben") for n in range(8)])
    assert len(save_hub_audio(source, tmp_path / "a", max_utterances=3)) == 3
    assert len(save_hub_audio(source, tmp_path / "b", max_seconds=2.2)) == 4
    assert len(list((tmp_path / "b").rglob("*.flac"))) == 4
    few = save_hub_audio(source, tmp_path / "c", max_speaker_utterances=2)
    assert [each.id for each in few] == [
        "ann/0000001",
        "ann/0000003",
        "ben/0000000",
        "ben/0000002",
    ]


def test_splits_by_words_by_session_or_in_order(tmp_path):
    texts = [f"Text {n // 2}" + "." * (n % 2) for n in range(16)]
    rows = [row(n, "ab"[n % 2]) | {"text": texts[n], "day": n // 4} for n in range(16)]
    source = tmp_path / "data"
    by_words = save_hub_audio(dataset(source, rows), tmp_path / "a")
    assert by_words[0].split == by_words[8].split
    words = {(each.text or "").strip("."): set() for each in by_words}
    for each in by_words:
        words[(each.text or "").strip(".")].add(each.split)
    assert all(len(sides) == 1 for sides in words.values())
    by_day = save_hub_audio(dataset(source, rows, session="day"), tmp_path / "b")
    for day in range(4):
        of_a = {each.split for each in by_day if int(each.id[2:]) // 4 == day and each.id[0] == "a"}
        assert len(of_a) == 1
    alone = save_hub_audio(dataset(source, rows, text=None, speaker=None), tmp_path / "c")
    assert {each.speaker for each in alone} == {"data"}
    assert [each.split for each in alone] == ["adapt"] * 8 + ["test"] * 8
    assert {each.text for each in alone} == {None}


def test_rows_that_hold_no_sound_are_counted(tmp_path, caplog):
    rows = [row(n) for n in range(6)]
    rows[1]["audio"]["bytes"] = b"not sound at all"
    rows[2]["audio"]["bytes"] = encoded(0.5, 2)[:2000]
    rows[3]["audio"] = {"bytes": None, "path": None}
    rows[4]["speaker_id"] = None
    found = save_hub_audio(dataset(tmp_path / "data", rows), tmp_path / "out")
    assert [each.id for each in found] == ["ann/0000000", "ann/0000005"]
    assert "skipped 3, rows without usable audio" in caplog.text
    assert "row 1 (not audio), row 2 (truncated), row 3 (empty)" in caplog.text
    assert "skipped 1, rows of no speaker: 4" in caplog.text
    assert len(list((tmp_path / "out").rglob("*.flac"))) == 2


def test_reads_a_file_that_a_row_names(tmp_path):
    (tmp_path / "1.wav").write_bytes(encoded(0.5, 1, "WAV"))
    rows = [row(0), row(1)]
    rows[1]["audio"] = {"bytes": None, "path": str(tmp_path / "1.wav")}
    found = save_hub_audio(dataset(tmp_path / "data", rows), tmp_path / "out")
    assert [each.audio.suffix for each in found] == [".flac", ".wav"]


def test_never_decodes_with_torchcodec(tmp_path, monkeypatch):
    """The features of the Hub say Audio, which would be decoded as a row is read."""

    def refuse(*arguments, **options):
        raise AssertionError("decoded by datasets")

    monkeypatch.setattr(datasets.Audio, "decode_example", refuse)
    rows = [row(n, other_audio={"bytes": b"x", "path": "x"}) for n in range(3)]
    source = dataset(tmp_path / "data", rows)
    features = {"audio": {"_type": "Audio"}, "other_audio": {"_type": "Audio"}}
    features |= {name: {"_type": "Value", "dtype": "string"} for name in ("speaker_id", "text")}
    said = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    for path in (tmp_path / "data").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata(said), path)
    assert len(save_hub_audio(source, tmp_path / "out")) == 3


def test_names_what_is_wrong(tmp_path):
    rows = [row(0), row(1)]
    source = dataset(tmp_path / "data", rows, speaker="speaker")
    with pytest.raises(ManifestError, match=r"column 'speaker' as .*nearest is 'speaker_id'"):
        save_hub_audio(source, tmp_path / "out")
    with pytest.raises(ManifestError, match="none: expected a dataset that can be read"):
        save_hub_audio(AudioDataset(str(tmp_path / "none"), "train"), tmp_path / "out")
    with pytest.raises(ManifestError, match="expected a dataset that can be read"):
        save_hub_audio(AudioDataset(str(tmp_path / "data"), "tset"), tmp_path / "out")
    with pytest.raises(ManifestError, match="expected utterances, found none"):
        save_hub_audio(dataset(tmp_path / "data", rows), tmp_path / "out", max_utterances=0)
