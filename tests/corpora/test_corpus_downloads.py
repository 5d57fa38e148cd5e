"""Each corpus that may be downloaded: from an archive made like the published one to utterances."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from fpspeech.corpora import ManifestError, archives
from fpspeech.corpora.archives import Archive
from fpspeech.corpora.catalogue import CORPORA
from fpspeech.corpora.librispeech import SHA256, download_librispeech

PUBLISHED = {
    "librispeech": {
        "LibriSpeech/test-other/1/2/1-2.trans.txt": "1-2-0000 ONE\n1-2-0001 TWO\n",
        "LibriSpeech/test-other/1/2/1-2-0000.flac": "",
        "LibriSpeech/test-other/1/2/1-2-0001.flac": "",
    },
    "speechocean762": {
        "speechocean762/test/wav.scp": "1\tWAVE/SPEAKER1/1.WAV\n",
        "speechocean762/test/text": "1\tONE\n",
        "speechocean762/test/utt2spk": "1\t1\n",
        "speechocean762/WAVE/SPEAKER1/1.WAV": "",
    },
    "fsdd": {
        "free-spoken-digit-dataset-master/README.md": "",
        "free-spoken-digit-dataset-master/recordings/0_theo_0.wav": "",
    },
    "vctk": {
        "wav48_silence_trimmed/p225/p225_001_mic1.flac": "",
        "txt/p225/p225_001.txt": "One.",
    },
    "speech_commands": {
        "./yes/0a7c2a8d_nohash_0.wav": "",
        "./no/0a7c2a8d_nohash_0.wav": "",
        "./_background_noise_/README.md": "",
    },
}


def packed(name: str, members: dict[str, str]) -> bytes:
    content = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(content, "w") as zipped:
            for member, text in members.items():
                zipped.writestr(member, text)
    else:
        assert name.endswith(".tar.gz")
        with tarfile.open(fileobj=content, mode="w:gz") as tar:
            for member, text in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
    return content.getvalue()


@pytest.fixture
def asked(monkeypatch) -> list[Archive]:
    """What is downloaded, where each gets a miniature of the published archive."""
    found: list[Archive] = []

    def download(archive: Archive, target: Path) -> Path:
        found.append(archive)
        of = next(name for name, corpus in CORPORA.items() if url_of(name) in archive.url)
        assert CORPORA[of].download is not None
        path = target / archive.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed(path.name, PUBLISHED[of]))
        return path

    monkeypatch.setattr(archives, "download", download)
    return found


def url_of(name: str) -> str:
    parts = {
        "librispeech": "/12/",
        "speechocean762": "/101/",
        "fsdd": "free-spoken-digit-dataset",
        "vctk": "VCTK-Corpus-0.92.zip",
        "speech_commands": "speech_commands_v0.02.tar.gz",
    }
    return parts.get(name, "no such address")


def test_these_are_all():
    found = {name for name, corpus in CORPORA.items() if corpus.download}
    assert found == PUBLISHED.keys() | {"hub"}  # which streams, see test_corpus_hub.py


def test_options_say_what_is_downloaded(tmp_path, asked):
    CORPORA["librispeech"].fetch(tmp_path, parts=["dev-clean"], seed=3)
    assert [each.file_name for each in asked] == ["dev-clean.tar.gz"]
    with pytest.raises(ManifestError, match=r"found 'part' .did you mean 'parts'"):
        CORPORA["librispeech"].fetch(tmp_path, part=["dev-clean"])
    with pytest.raises(ManifestError, match=r"TORGO cannot be downloaded .*cs\.toronto"):
        CORPORA["torgo"].fetch(tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_downloads_to_where_it_is_found(tmp_path, asked, name):
    corpus = CORPORA[name]
    assert corpus.download is not None
    root = corpus.download(tmp_path)
    assert root == corpus.download(str(tmp_path))
    assert len(asked) == 1  # the second call found it there
    assert corpus.find(tmp_path) == corpus.find(root) == root
    options = {"min_utterances": 1} if name == "speech_commands" else {}
    found = corpus.utterances(tmp_path, **options)
    assert found
    assert {each.split for each in found} <= {"adapt", "test"}
    assert asked[0].url.startswith(("https://", "http://download.tensorflow.org/"))


def test_librispeech_parts(tmp_path, asked):
    download_librispeech(tmp_path, ["test-other", "dev-clean"])
    assert [each.file_name for each in asked] == ["test-other.tar.gz", "dev-clean.tar.gz"]
    assert [each.sha256 for each in asked] == [SHA256["test-other"], SHA256["dev-clean"]]
    with pytest.raises(ValueError, match="found 'test'"):
        download_librispeech(tmp_path, ["test"])
