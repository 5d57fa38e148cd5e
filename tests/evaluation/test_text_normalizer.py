import pickle
from dataclasses import asdict, replace
from importlib.metadata import version

import pytest

from fpspeech.evaluation import TextNormalizer, text_normalizer


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The CAT", "the cat"),
        ("Mr. Smith", "mister smith"),
        ("he won't, can't", "he will not can not"),
        ("I've got it", "i have got it"),
        ("twenty one dollars", "$21"),
        ("one thousand two hundred", "1,200"),
        ("two  spaces \t here\n", " two spaces here"),
        ("the colour of the theatre", "the color of the theater"),
        ("uh I um agree", "i agree"),
        ("yes [laughter] it is", "yes it is"),
        ("café", "cafe"),
        ("don’t, it’s", "don't it's"),
        ("I went... home...", "i went home"),
        ("I went… home…", "i went home"),
    ],
)
def test_english_spellings_of_the_same_words_become_equal(one: str, other: str) -> None:
    normalize = text_normalizer("en")
    assert normalize(one) == normalize(other)


def test_english_keeps_different_words_different() -> None:
    normalize = text_normalizer()
    assert normalize("I can") != normalize("I can't")
    assert normalize("fifteen") != normalize("fifty")


@pytest.mark.parametrize("text", ["", "  ", "[noise]", "...", "…", "$", "(door) - !"])
@pytest.mark.parametrize("language", ["en", "de", "ja"])
def test_nothing_spoken_is_empty(text: str, language: str) -> None:
    assert text_normalizer(language)(text) == ""


def test_hesitations_are_nothing_in_english_only() -> None:
    assert text_normalizer("en")("uh, um") == ""
    assert text_normalizer("de")("um") == "um"


def test_symbols_that_are_spoken_stay() -> None:
    assert text_normalizer("en")("it costs $21.50, that is 5%") == "it costs $21.50 that is 5%"


def test_other_languages_keep_numbers_and_accents() -> None:
    normalize = text_normalizer("fr")
    assert normalize("Déjà  VINGT-et-un, Mr.") == "déjà vingt et un mr"


def test_combining_marks_do_not_split_words() -> None:
    assert text_normalizer("hi")("नमस्ते, दुनिया!") == "नमस्ते दुनिया"
    assert text_normalizer("ar")("كِتَاب") == "كِتَاب"


@pytest.mark.parametrize("language", ["zh", "zh-TW", "yue", "ja", "th", "lo", "my", "km"])
def test_languages_without_spaces_are_counted_in_characters(language: str) -> None:
    assert text_normalizer(language).unit == "character"


def test_spaces_do_not_matter_where_they_are_not_written() -> None:
    assert text_normalizer("zh")("你好，世界！") == text_normalizer("zh")("你好 世界") == "你好世界"
    assert text_normalizer("km")("ខ្ញុំ\u200bទៅ") == text_normalizer("km")("ខ្ញុំទៅ")


@pytest.mark.parametrize("language", ["en", "EN", "en-GB", "en_us", " en "])
def test_region_and_case_of_a_code_are_ignored(language: str) -> None:
    assert text_normalizer(language) == text_normalizer("en")


@pytest.mark.parametrize("language", ["", "english", "xx", "eng", "auto"])
def test_unknown_language_is_an_error(language: str) -> None:
    with pytest.raises(ValueError, match=f"unknown language {language!r}"):
        text_normalizer(language)


def test_it_is_plain_data_with_its_version() -> None:
    normalizer = text_normalizer("de")
    assert normalizer.version == version("whisper-normalizer")
    assert "BasicTextNormalizer" in normalizer.name
    assert TextNormalizer(**asdict(normalizer)) == normalizer
    assert pickle.loads(pickle.dumps(normalizer))("Straße") == normalizer("Straße")


def test_text_of_another_version_is_not_made_silently() -> None:
    with pytest.raises(ValueError, match=r"0\.0\.1, but .* is installed"):
        replace(text_normalizer("en"), version="0.0.1")("hello")
    with pytest.raises(ValueError, match="unknown normaliser 'mine'"):
        replace(text_normalizer("en"), name="mine")("hello")
