from pathlib import Path

import pytest

from fpspeech.corpora import ManifestError, hold_out, read_utterances, write_manifest
from fpspeech.corpora.layout import CorpusNotFound
from fpspeech.corpora.plain_folder import find_folder_of_recordings, prepare_folder


def recordings(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def splits(found) -> dict[str, str | None]:
    return {each.id: each.split for each in found}


def test_one_speaker_without_order_is_split_by_id(tmp_path):
    root = recordings(tmp_path / "ann", *(f"{n}.WAV" for n in range(9)), "._0.wav")
    (root / "3.txt").write_text("three  words here\n", encoding="utf-8-sig")
    found = prepare_folder(find_folder_of_recordings(root), seed=4)
    assert [each.split for each in found].count("test") == 4
    _, held_out = hold_out(read_utterances(root), 0.5, seed=4)
    assert {each.id for each in held_out} == {e.id for e in found if e.split == "test"}
    assert found[3].text == "three  words here"
    assert {each.speaker for each in prepare_folder(root, speaker="Ann")} == {"Ann"}


def test_subfolders_of_a_speaker_are_sessions(tmp_path):
    names = [f"{who}/{day}/{n}.wav" for who in ("ann", "ben") for day in "xyz" for n in range(3)]
    found = prepare_folder(recordings(tmp_path, *names))
    by_session: dict[str, set[str | None]] = {}
    for each in found:
        by_session.setdefault(str(each.audio.parent), set()).add(each.split)
    assert len(by_session) == 6
    assert all(len(sides) == 1 for sides in by_session.values())
    assert {each.split for each in found if each.speaker == "ben"} == {"adapt", "test"}


def test_splits_that_are_given_are_kept(tmp_path):
    root = recordings(tmp_path, "ann/adapt/1.wav", "ann/adapt/2.wav", "ann/test/1.wav", "ben/1.wav")
    found = splits(prepare_folder(root, test_share=1))
    assert found == {
        "ann/adapt/1": "adapt",
        "ann/adapt/2": "adapt",
        "ann/test/1": "test",
        "ben/1": "test",
    }
    recordings(root, "ann/loose.wav")
    with pytest.raises(ManifestError, match=r"loose\.wav.*adapt or test.*1 of 4 in neither"):
        prepare_folder(root)


def test_a_folder_with_a_manifest(tmp_path):
    recordings(tmp_path, "a.wav", "b.wav")
    write_manifest(tmp_path / "manifest.jsonl", prepare_folder(tmp_path, speaker="ann"))
    assert splits(prepare_folder(tmp_path, seed=9)) == splits(read_utterances(tmp_path))


def test_a_folder_that_is_not_there(tmp_path):
    for given in (None, tmp_path / "none"):
        with pytest.raises(CorpusNotFound, match="say where it is"):
            find_folder_of_recordings(given)
