"""Text normalisers: what counts as the same word, named and versioned.

Two word error rates can be compared only under the same normaliser, so a result stores which one
it used. The rules are those of the Whisper paper (Radford et al. 2022, appendix C) as packaged by
`whisper-normalizer`, except where they would count errors that nobody made:

- English: a curly apostrophe is a straight one ("don’t" became "don t", "don't" "do not"), and a
  word without letter or digit is dropped ("went..." became the two words "went .").
- Elsewhere: combining marks are kept. They became spaces, which cut Hindi, Tamil, Thai or
  vocalised Arabic words to pieces and made different words equal.

The names say so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Literal

Unit = Literal["word", "character"]

PACKAGE = "whisper-normalizer"
ENGLISH = f"{PACKAGE} EnglishTextNormalizer, straight apostrophes, no bare symbols"
BASIC = f"{PACKAGE} BasicTextNormalizer, combining marks kept"

# ISO 639-1, then the three-letter codes (and "jw") of Whisper and Common Voice.
_CODES = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da
de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz
ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln
lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi
pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti
tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
ast ckb cnh haw hsb jw kab kmr mdf mhr mrj myv sah sat skr tig tok vot zgh zza
"""
# Written without spaces between words: errors are counted in characters.
_CHARACTER_CODES = "bo cmn dz ja km lo my nan th wuu yue zh"

CHARACTER_LANGUAGES = frozenset(_CHARACTER_CODES.split())
LANGUAGES = CHARACTER_LANGUAGES.union(_CODES.split())


@dataclass(frozen=True)
class TextNormalizer:
    """A named, versioned map from text to comparable text, and the unit to count errors in.

    It is plain data, so it can be stored with a result; the rules are built on the first call.
    `version` is that of the package `whisper-normalizer`. With unit "character" the result has no
    spaces, and a character is a Unicode code point after NFKC.

    Calling it raises ValueError for an unknown name, or where the installed package has another
    version: the text would not be the one the stored result was computed on.
    """

    name: str
    version: str
    language: str
    unit: Unit

    def __call__(self, text: str) -> str:
        """Normalise a text; words are separated by single spaces, without any at the ends."""
        normalized = _rules(self.name, self.version)(text)
        if self.unit == "character":
            # Khmer, Thai and Lao text may mark words with zero-width spaces.
            return "".join(normalized.replace("\u200b", " ").split())
        return " ".join(normalized.split())


def text_normalizer(language: str = "en") -> TextNormalizer:
    """Choose the normaliser and the unit of errors for a language.

    `language` is an ISO 639-1 code or a code of Whisper or Common Voice, in any case; a region is
    ignored ("pt-BR" is "pt"). English has its own rules (numbers, contractions, titles, British
    spellings); every other language shares the basic ones. Languages written without spaces are
    counted in characters.

    Raises ValueError for an unknown code.
    """
    code = language.strip().lower().replace("_", "-").split("-")[0]
    if code not in LANGUAGES:
        raise ValueError(
            f"unknown language {language!r}: expected a code such as 'en', 'de', 'zh' or 'pt-BR' "
            f"(ISO 639-1, or a code of Whisper or Common Voice)"
        )
    return TextNormalizer(
        name=ENGLISH if code == "en" else BASIC,
        version=version(PACKAGE),
        language=code,
        unit="character" if code in CHARACTER_LANGUAGES else "word",
    )


@cache
def _rules(name: str, wanted: str) -> Callable[[str], str]:
    installed = version(PACKAGE)
    if wanted != installed:
        raise ValueError(
            f"the normaliser is {PACKAGE} {wanted}, but {installed} is installed: "
            f"install {PACKAGE}=={wanted}, or take a new normaliser from text_normalizer()"
        )
    # Imported here: only an evaluation needs the tables of spellings.
    if name == ENGLISH:
        from whisper_normalizer.english import EnglishTextNormalizer

        whisper = EnglishTextNormalizer()

        def english(text: str) -> str:
            words = whisper(text.replace("’", "'")).split()
            return " ".join(word for word in words if any(map(str.isalnum, word)))

        return english
    if name == BASIC:
        from whisper_normalizer.basic import BasicTextNormalizer

        basic: Callable[[str], str] = BasicTextNormalizer(preserve_marks=True)
        return basic
    raise ValueError(f"unknown normaliser {name!r}: expected {ENGLISH!r} or {BASIC!r}")
