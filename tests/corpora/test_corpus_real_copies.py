"""The corpora themselves, where FPSPEECH_DATA names a folder that holds them."""

import os
from collections import Counter

import pytest

from fpspeech.corpora import Utterance, inspect_recording
from fpspeech.corpora.apart import prompt_words
from fpspeech.corpora.catalogue import find_corpus
from fpspeech.corpora.layout import CorpusNotFound
from fpspeech.corpora.librispeech import chapter_of, find_librispeech, prepare_librispeech
from fpspeech.corpora.speechocean762 import find_speechocean762, read_speechocean762_readers


@pytest.fixture(autouse=True)
def data():
    if not os.environ.get("FPSPEECH_DATA"):
        pytest.skip("set FPSPEECH_DATA to a folder with LibriSpeech, speechocean762 and fsdd")


def read(name: str, **options) -> list[Utterance]:
    try:
        found = find_corpus(name).utterances(**options)
    except CorpusNotFound as error:
        pytest.skip(str(error))
    for each in found[:: len(found) // 5]:
        inspect_recording(each.audio)
    return found


def counts(utterances: list[Utterance]) -> list[tuple[int, int]]:
    """How many adapt and test of each speaker."""
    by_split = {
        split: Counter(each.speaker for each in utterances if each.split == split)
        for split in ("adapt", "test")
    }
    speakers = sorted({each.speaker for each in utterances})
    return [(by_split["adapt"][name], by_split["test"][name]) for name in speakers]


def test_librispeech():
    found = read("librispeech", parts=["test-other"])
    assert counts(found) == [(5, 5)] * 10
    for each in found:
        assert each.text == " ".join(str(each.text).upper().split())


def test_librispeech_chapters():
    if not (find_librispeech() / "train-clean-100").is_dir():
        pytest.skip("LibriSpeech/train-clean-100 is not in FPSPEECH_DATA")
    found = prepare_librispeech(find_librispeech(), parts=["train-clean-100"])
    sides: dict[str, set] = {}
    for each in found:
        sides.setdefault(chapter_of(each), set()).add(each.split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert all(min(pair) > 0 for pair in counts(found))


def test_speechocean762():
    found = read("speechocean762")
    assert counts(found) == [(10, 10)] * 16
    sides: dict[tuple[str, str], set] = {}
    for each in found:
        sides.setdefault((each.speaker, prompt_words(each.text or "")), set()).add(each.split)
    assert all(len(splits) == 1 for splits in sides.values())
    readers = read_speechocean762_readers(find_speechocean762())
    assert readers.keys() >= {each.speaker for each in found}
    assert {reader.gender for reader in readers.values()} == {"f", "m"}
    assert all(0 < (reader.age or 0) < 100 for reader in readers.values())


def test_fsdd():
    found = read("fsdd")
    assert counts(found) == [(250, 250)] * 6
    assert Counter(each.text for each in found)["SEVEN"] == 300
