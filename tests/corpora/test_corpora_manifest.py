import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from fpspeech.corpora import ManifestError, Utterance, read_utterances, write_manifest


def audio(folder: Path, *names: str) -> None:
    """Make files that exist; none of these tests opens audio."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def jsonl(folder: Path, *rows, name="manifest.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refusal(path: Path, **options) -> str:
    with pytest.raises(ManifestError) as caught:
        read_utterances(path, **options)
    message = str(caught.value)
    assert "expected" in message
    assert "found" in message
    return message


def ids(path: Path, **options) -> list[str]:
    return [utterance.id for utterance in read_utterances(path, **options)]


@pytest.fixture
def forbid_sidecars(monkeypatch):
    for method in ("open", "read_text", "read_bytes"):
        original = getattr(Path, method)

        def guarded(self, *args, original=original, **options):
            assert self.suffix != ".txt", f"{self} was opened"
            return original(self, *args, **options)

        monkeypatch.setattr(Path, method, guarded)


# Manifests


def test_reads_jsonl_in_order_of_id(tmp_path):
    audio(tmp_path, "a/1.wav", "2.flac")
    path = jsonl(
        tmp_path,
        {"audio": "2.flac", "speaker": 7, "id": "u2", "text": " Grüße\u2028! ", "split": "test"},
        "",
        {"audio": "a/1.wav", "speaker": "ann", "colour": "red", "text": None, "split": None},
    )
    expected = [
        Utterance("a/1", tmp_path / "a/1.wav", "ann"),
        Utterance("u2", tmp_path / "2.flac", "7", "Grüße\u2028!", "test"),
    ]
    assert read_utterances(path, with_text=True) == expected
    assert read_utterances(tmp_path, with_text=True) == expected
    assert read_utterances(str(path)) == [replace(each, text=None) for each in expected]


def test_reads_csv_with_quotes_and_a_byte_order_mark(tmp_path):
    audio(tmp_path, "1.wav", "2.wav")
    path = tmp_path / "manifest.csv"
    path.write_bytes(
        b"\xef\xbb\xbfaudio, speaker,text,split,age\r\n\r\n"
        b'1.wav,ann,"one, ""two""\r\nthree",adapt,30\r\n,,,,\r\n2.wav,ann,,,\r\n'
    )
    expected = [
        Utterance("1", tmp_path / "1.wav", "ann", 'one, "two"\r\nthree', "adapt"),
        Utterance("2", tmp_path / "2.wav", "ann"),
    ]
    assert read_utterances(tmp_path, with_text=True) == expected
    assert [each.text for each in read_utterances(path)] == [None, None]


def test_absolute_audio_and_a_byte_order_mark_in_jsonl(tmp_path):
    audio(tmp_path, "elsewhere/1.wav")
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "m.jsonl"
    row = {"audio": str(tmp_path / "elsewhere/1.wav"), "speaker": "ann"}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode())
    assert read_utterances(path)[0].audio == tmp_path / "elsewhere/1.wav"


def test_the_speaker_given_fills_in_for_the_key(tmp_path):
    audio(tmp_path, "1.wav", "2.wav")
    path = jsonl(tmp_path, {"audio": "1.wav"}, {"audio": "2.wav", "speaker": "bob"})
    assert "line 1" in refusal(path)
    assert "'speaker'" in refusal(path)
    assert [each.speaker for each in read_utterances(path, speaker="ann")] == ["ann"]


def test_only_the_files_of_the_speaker_given_must_exist(tmp_path):
    audio(tmp_path, "1.wav")
    path = jsonl(
        tmp_path, {"audio": "1.wav", "speaker": "ann"}, {"audio": "2.wav", "speaker": "bob"}
    )
    assert ids(path, speaker="ann") == ["1"]
    assert "found 1 missing" in refusal(path, speaker="bob")


def test_an_unknown_speaker_is_told_the_nearest_name(tmp_path):
    audio(tmp_path, "anna/1.wav", "bob/1.wav")
    message = refusal(tmp_path, speaker="ana")
    assert "no 'ana'" in message
    assert "the nearest is 'anna'" in message
    assert "anna, bob" in message


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ('{"audio": "1.wav", speaker}', ["bad JSON", "column", "double quotes"]),
        ('["1.wav", "ann"]', ["JSON object", "found a list"]),
        ({"speaker": "ann"}, ["the key 'audio'", "found the keys speaker"]),
        ({"audio": "", "speaker": "ann"}, ["the key 'audio'"]),
        ({"audio": "1.wav"}, ["the key 'speaker'", "whose recordings"]),
        ({"audio": 1, "speaker": "ann"}, ["audio to be a string", "found 1"]),
        ({"audio": "1.wav", "speaker": "ann", "transcript": "x"}, ["rename", "'text'"]),
        ({"audio": "1.wav", "speakr": "ann"}, ["'speakr'", "to 'speaker'"]),
        ({"path": "1.wav", "speaker": "ann"}, ["rename 'path' to 'audio'"]),
        ({"audio": "1.wav", "speaker": "ann", "Text": "x"}, ["rename 'Text' to 'text'"]),
        ({"audio": "1.wav", "speaker": "ann", "split": "train"}, ["'adapt' or 'test'", "'train'"]),
        ({"audio": "1.m4a", "speaker": "ann"}, [".wav", "'1.m4a'", "convert"]),
        ({"audio": "1.wav", "speaker": "ann", "id": "same"}, ["'same'", "line 1", "change"]),
    ],
)
def test_a_bad_row_is_named_with_its_remedy(tmp_path, row, parts):
    audio(tmp_path, "0.wav", "1.wav")
    path = jsonl(tmp_path, {"audio": "0.wav", "speaker": "ann", "id": "same"}, "", row)
    message = refusal(path)
    for part in [f"{path}, line 3", *parts]:
        assert part in message


def test_another_name_is_harmless_beside_the_key_it_stands_for(tmp_path):
    audio(tmp_path, "1.wav")
    jsonl(tmp_path, {"audio": "1.wav", "speaker": "ann", "text": "a", "sentence": "b"})
    assert read_utterances(tmp_path, with_text=True)[0].text == "a"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("audio;speaker\n1.wav;ann\n", ["line 2", "'audio'", "audio;speaker"]),
        ("audio,speaker\n1.wav,ann,more\n", ["line 2", "2 fields", "found 3", "quotes"]),
        ('audio,speaker\n1.wav,"an"n\n', ["line 2", "expected CSV", "check the quotes"]),
        ("audio,speaker,split\n\n1.wav,ann,dev\n", ["line 3", "'dev'"]),
        ("audio,speaker\n", ["expected one utterance a line, found none"]),
    ],
)
def test_a_bad_csv_is_named_with_its_remedy(tmp_path, content, parts):
    audio(tmp_path, "1.wav")
    path = tmp_path / "m.csv"
    path.write_text(content)
    message = refusal(path)
    for part in [str(path), *parts]:
        assert part in message


def test_missing_audio_is_counted_and_the_first_few_are_shown(tmp_path):
    audio(tmp_path, "0.wav")
    path = jsonl(tmp_path, *({"audio": f"{i}.wav", "speaker": "ann"} for i in range(10)))
    message = refusal(path)
    assert "expected 10 audio files, found 9 missing" in message
    assert "1.wav" in message
    assert "line 2" in message
    assert "and 4 more" in message
    assert "9.wav" not in message


def test_one_file_in_both_splits_is_refused(tmp_path):
    audio(tmp_path, "1.wav")
    same = {"audio": "1.wav", "speaker": "ann"}
    path = jsonl(
        tmp_path,
        same | {"id": "a", "split": "adapt"},
        same | {"id": "b", "audio": "../" + tmp_path.name + "/1.wav", "split": "test"},
    )
    message = refusal(path)
    assert "line 1" in message
    assert "line 2" in message
    assert "remove it from one" in message
    jsonl(tmp_path, *(same | {"id": each, "split": "adapt"} for each in "ab"))
    assert ids(path) == ["a", "b"]


def test_paths_that_are_no_corpus(tmp_path):
    assert "check the path" in refusal(tmp_path / "none")
    audio(tmp_path, "list.txt", "1.wav")
    assert "found '.txt'" in refusal(tmp_path / "list.txt")
    assert "give the folder" in refusal(tmp_path / "1.wav")
    assert "found none" in refusal(jsonl(tmp_path, "", " ", name="empty.jsonl"))
    audio(tmp_path, "two/manifest.csv", "two/manifest.jsonl")
    assert "manifest.jsonl and manifest.csv" in refusal(tmp_path / "two")
    (tmp_path / "latin.jsonl").write_bytes(b'\n{"audio": "\xe9.wav"}\n')
    assert "latin.jsonl, line 2: expected UTF-8, found the byte 0xe9" in refusal(
        tmp_path / "latin.jsonl"
    )


# Folders


def test_a_folder_of_files_is_one_speaker(tmp_path):
    root = tmp_path / "ann"
    audio(root, "2.wav", "1.FLAC", "more/3.ogg", "notes.md", "._2.wav", ".cache/4.wav")
    assert ids(root) == ["ann/1", "ann/2", "ann/more/3"]
    assert {each.speaker for each in read_utterances(root)} == {"ann"}
    assert ids(root, speaker="bob") == ["bob/1", "bob/2", "bob/more/3"]


def test_a_folder_per_speaker(tmp_path):
    audio(tmp_path, "bob/1.wav", "ann/day/1.wav", "ann/adapt/2.wav", "ann/Test/3.wav", "docs/a.md")
    assert read_utterances(tmp_path) == [
        Utterance("ann/Test/3", tmp_path / "ann/Test/3.wav", "ann", None, "test"),
        Utterance("ann/adapt/2", tmp_path / "ann/adapt/2.wav", "ann", None, "adapt"),
        Utterance("ann/day/1", tmp_path / "ann/day/1.wav", "ann"),
        Utterance("bob/1", tmp_path / "bob/1.wav", "bob"),
    ]
    assert ids(tmp_path, speaker="bob") == ["bob/1"]


def test_a_speaker_has_the_same_ids_from_within_and_from_above(tmp_path):
    audio(tmp_path, "ann/adapt/1.wav", "ann/test/2.wav", "bob/1.wav")
    assert ids(tmp_path / "ann") == ids(tmp_path, speaker="ann") == ["ann/adapt/1", "ann/test/2"]
    splits = [each.split for each in read_utterances(tmp_path / "ann")]
    assert splits == ["adapt", "test"]


def test_a_folder_without_audio_says_what_it_holds(tmp_path):
    assert "found no files" in refusal(tmp_path)
    audio(tmp_path, "ann/1.m4a", "ann/README")
    message = refusal(tmp_path)
    assert "only .m4a, no suffix" in message
    assert "convert" in message


def test_audio_of_other_kinds_is_passed_over_with_a_warning(tmp_path, caplog):
    audio(tmp_path, "1.wav", "2.m4a")
    with caplog.at_level(logging.WARNING):
        assert len(ids(tmp_path)) == 1
    assert "skipped 1 files" in caplog.text
    assert "2.m4a" in caplog.text


def test_two_encodings_of_one_recording_are_refused(tmp_path):
    audio(tmp_path, "1.wav", "1.flac")
    message = refusal(tmp_path)
    assert "1.wav" in message
    assert "1.flac" in message


# Transcripts


def test_sidecars_are_read_only_with_text(tmp_path):
    audio(tmp_path, "1.wav", "2.wav", "3.wav")
    (tmp_path / "1.txt").write_text("\ufeffhello there\n", encoding="utf-8")
    (tmp_path / "3.txt").write_text("\n")
    texts = [each.text for each in read_utterances(tmp_path, with_text=True)]
    assert texts == ["hello there", None, None]


@pytest.mark.usefixtures("forbid_sidecars")
def test_without_text_no_sidecar_is_opened(tmp_path):
    audio(tmp_path, "ann/1.wav", "ann/adapt/2.wav")
    (tmp_path / "ann/1.txt").mkdir()
    (tmp_path / "ann/adapt/2.txt").symlink_to(tmp_path / "unreadable")
    assert [each.text for each in read_utterances(tmp_path)] == [None, None]


def test_the_guard_against_sidecars_works(tmp_path, forbid_sidecars):
    audio(tmp_path, "1.wav")
    with open(tmp_path / "1.txt", "w") as file:
        file.write("hello")
    assert read_utterances(tmp_path)[0].text is None
    with pytest.raises(AssertionError, match="was opened"):
        read_utterances(tmp_path, with_text=True)


def test_without_text_a_transcript_is_not_even_looked_at(tmp_path):
    audio(tmp_path, "1.wav")
    jsonl(tmp_path, {"audio": "1.wav", "speaker": "ann", "text": {"not": ["a", "string"]}})
    assert read_utterances(tmp_path)[0].text is None
    assert "text to be a string" in refusal(tmp_path, with_text=True)


# Writing


def test_what_is_written_is_read_back(tmp_path):
    audio(tmp_path, "wav/1.wav", "lists/2.wav")
    utterances = [
        Utterance("a", tmp_path / "wav/1.wav", "ann", 'Grüße, "you"\n', "adapt"),
        Utterance("b", tmp_path / "lists/2.wav", "bob"),
    ]
    path = tmp_path / "lists" / "new" / "m.jsonl"
    write_manifest(path, utterances)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["audio"] for row in rows] == ["../../wav/1.wav", "../2.wav"]
    assert "text" not in rows[1]
    again = read_utterances(path, with_text=True)
    assert [(each.id, each.speaker, each.split) for each in again] == [
        ("a", "ann", "adapt"),
        ("b", "bob", None),
    ]
    assert again[0].text == 'Grüße, "you"'
    assert all(
        one.audio.samefile(other.audio) for one, other in zip(again, utterances, strict=True)
    )


def test_a_failed_write_leaves_the_old_manifest(tmp_path):
    path = jsonl(tmp_path, "old")

    def failing():
        yield Utterance("a", tmp_path / "1.wav", "ann")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_manifest(path, failing())
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_manifest_is_written_as_jsonl_only(tmp_path):
    with pytest.raises(ManifestError, match=r"\.jsonl, found '\.csv'"):
        write_manifest(tmp_path / "m.csv", [])
