import doctest
import inspect

import pytest

from fpspeech.corpora import ManifestError, catalogue
from fpspeech.corpora.catalogue import CORPORA, find_corpus


def test_the_example_runs():
    assert doctest.testmod(catalogue).failed == 0


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_is_called_alike(name):
    corpus = CORPORA[name]
    assert corpus.name == name
    find = inspect.signature(corpus.find).parameters
    assert next(iter(find)) == "data_dir"
    assert find["data_dir"].default is None
    prepare = inspect.signature(corpus.prepare).parameters
    assert list(prepare)[:3] == ["root", "seed", "test_share"]
    assert all(each.kind is each.KEYWORD_ONLY for each in list(prepare.values())[1:])
    if corpus.download is not None:
        assert next(iter(inspect.signature(corpus.download).parameters)) == "target"
    for said in (corpus.title, corpus.language, corpus.licence, corpus.split, corpus.not_shared):
        assert said
    assert corpus.homepage.startswith("https://") or name == "folder"


def test_a_corpus_by_name():
    assert find_corpus(" L2-ARCTIC ") is CORPORA["l2_arctic"]
    assert find_corpus("speech commands") is CORPORA["speech_commands"]
    with pytest.raises(ManifestError, match=r"'libri-speach'.*mean 'librispeech'.*the corpora are"):
        find_corpus("libri-speach")


def test_reads_a_corpus_with_its_options(tmp_path):
    for number in range(4):
        path = tmp_path / "recordings" / f"3_theo_{number}.wav"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    corpus = find_corpus("fsdd")
    found = corpus.utterances(tmp_path, test_share=0.25, seed=1)
    assert [each.split for each in found] == ["adapt"] * 3 + ["test"]
    with pytest.raises(ManifestError, match=r"fsdd.*found 'test_shares' .*mean 'test_share'"):
        corpus.utterances(tmp_path, test_shares=0.25)


def test_an_option_of_finding(tmp_path):
    with pytest.raises(ManifestError, match="language 'cy'"):
        find_corpus("common_voice").utterances(tmp_path, language="cy")


def test_one_name_where_several_are_taken_is_not_taken_apart(tmp_path):
    for speaker in ("theo", "lucas"):
        path = tmp_path / "recordings" / f"3_{speaker}_0.wav"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for given in ("lucas", ["lucas"]):
        found = find_corpus("fsdd").utterances(tmp_path, speakers=given)
        assert {each.speaker for each in found} == {"lucas"}
