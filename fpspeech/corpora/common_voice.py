"""Mozilla Common Voice: sentences read by volunteers, with accents, in over a hundred languages.

As published, a folder a language: ``LANGUAGE/validated.tsv`` (``client_id``, ``path``,
``sentence``, ``accents`` or, in old releases, ``accent``, and others) and ``LANGUAGE/clips/*.mp3``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from fpspeech.corpora.apart import prompt_words, split_of_prompt
from fpspeech.corpora.layout import (
    corpus_utterances,
    find_folder,
    read_tab_separated,
    warn_skipped,
)
from fpspeech.corpora.utterance import ManifestError, Utterance

PAGE = "https://commonvoice.mozilla.org"
TABLE = "validated.tsv"
COLUMNS = ("client_id", "path", "sentence")


class _Clip(NamedTuple):
    """A row of the table, as far as it is read."""

    name: str
    speaker: str
    sentence: str
    accents: str


def find_common_voice(data_dir: str | Path | None = None, language: str = "en") -> Path:
    """Return the folder of one language, which holds ``validated.tsv``; raises ``CorpusNotFound``.

    ``data_dir`` is that folder, or the one of a release (``cv-corpus-VERSION``) that holds a folder
    named after the language. Below ``$FPSPEECH_DATA`` it is ``common_voice/LANGUAGE``.
    """
    names = (language, f"common_voice/{language}")
    return find_folder(
        "Common Voice",
        data_dir,
        names,
        lambda folder: (folder / TABLE).is_file(),
        f"a folder of the language {language!r} with {TABLE} and clips/",
        f"choose the language at {PAGE}, accept the terms (nobody may try to find out who the "
        "speakers are), download and unpack it",
    )


def prepare_common_voice(
    root: str | Path,
    *,
    seed: int = 0,
    test_share: float = 0.5,
    min_utterances: int = 20,
    accent: str | None = None,
) -> list[Utterance]:
    """Read the validated clips of one language, split by sentence, sorted by id.

    A sentence is on one side for everybody (`split_of_prompt` of its words). Left out, with a count
    in the log, are clips of no sentence, repeats of a sentence by one speaker, and speakers with
    fewer than ``min_utterances`` clips or with none on one side. With ``accent``, only clips whose
    accents contain it (in any case) are read. An id is the name of the clip without its suffix.
    Raises ``ManifestError`` for missing columns and recordings.
    """
    root = Path(root)
    read, wordless, repeated = [], [], []
    said: set[tuple[str, str]] = set()
    # Sorted, so that which of two repeats is kept does not depend on the order of the table.
    for clip in sorted(_clips(root / TABLE)):
        if accent is not None and accent.casefold() not in clip.accents.casefold():
            continue
        words = prompt_words(clip.sentence)
        if not words:
            wordless.append(clip.name)
        elif (clip.speaker, words) in said:
            repeated.append(clip.name)
        else:
            said.add((clip.speaker, words))
            text = " ".join(clip.sentence.split())
            split = split_of_prompt(words, test_share, seed)
            audio = root / "clips" / clip.name
            read.append(Utterance(audio.stem, audio, clip.speaker, text, split))
    warn_skipped("Common Voice", "clips of no sentence", wordless)
    warn_skipped("Common Voice", "a sentence that the speaker has said", repeated)
    kept = _with_enough(read, min_utterances, both=0 < test_share < 1)
    left_out = {each.speaker for each in read} - {each.speaker for each in kept}
    reason = f"speakers with fewer than {min_utterances} clips or none on one side"
    warn_skipped("Common Voice", reason, sorted(left_out))
    if not kept:
        whose = "" if accent is None else f" whose accents contain {accent!r}"
        raise ManifestError(
            f"{root / TABLE}: expected speakers with {min_utterances} clips or more{whose}, found "
            f"none among {len({each.speaker for each in read})}; lower min_utterances"
        )
    return corpus_utterances(root, ((each, root / TABLE) for each in kept))


def read_common_voice_accents(root: str | Path) -> dict[str, Counter[str]]:
    """Count the accents that each speaker names, as written, over the clips that name one."""
    accents: dict[str, Counter[str]] = {}
    for clip in _clips(Path(root) / TABLE):
        if clip.accents:
            accents.setdefault(clip.speaker, Counter())[clip.accents] += 1
    return accents


def _clips(table: Path) -> Iterator[_Clip]:
    for line, row in read_tab_separated(table, COLUMNS):
        name = row["path"]
        if not name or PurePath(name).name != name:
            raise ManifestError(
                f"{table}, line {line}: expected the name of a file in clips/ as the path, found "
                f"{name!r}; get the table again"
            )
        if not PurePath(name).suffix:
            name = f"{name}.mp3"  # as in the first releases
        accents = row.get("accents") or row.get("accent") or ""
        # A volunteer's id has 128 letters and is in thousands of rows: kept once.
        yield _Clip(name, sys.intern(row["client_id"]), row["sentence"], sys.intern(accents))


def _with_enough(read: list[Utterance], least: int, both: bool) -> list[Utterance]:
    count = Counter(each.speaker for each in read)
    sides: dict[str, set[str | None]] = {}
    for each in read:
        sides.setdefault(each.speaker, set()).add(each.split)
    return [
        each
        for each in read
        if count[each.speaker] >= least and (not both or len(sides[each.speaker]) == 2)
    ]
