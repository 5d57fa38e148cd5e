"""VoxPopuli: speeches in the European Parliament in many languages (Wang et al., 2021).

As ``voxpopuli.get_asr_data`` leaves it: ``transcribed_data/LANGUAGE/asr_PART.tsv`` (``id``,
``raw_text``, ``normalized_text``, ``speaker_id`` and others; parts train, dev and test) and
``transcribed_data/LANGUAGE/YEAR/ID.ogg``, where an id begins with the day, as in
20130702-0900-PLENARY-3-en_20130702-10:15:30_2.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fpspeech.corpora.apart import apart_by_group
from fpspeech.corpora.layout import (
    corpus_utterances,
    find_folder,
    read_tab_separated,
    warn_skipped,
)
from fpspeech.corpora.utterance import ManifestError, Utterance

PAGE = "https://github.com/facebookresearch/voxpopuli"
FOLDER_NAMES = ("voxpopuli", "VoxPopuli")
DATA = "transcribed_data"
PARTS = ("train", "dev", "test")
COLUMNS = ("id", "normalized_text", "speaker_id")
DAY = re.compile(r"(?P<year>\d{4})\d{4}-")
NOBODY = ("", "none", "null")


def find_voxpopuli(data_dir: str | Path | None = None) -> Path:
    """Return the folder that holds ``transcribed_data``; raises ``CorpusNotFound``."""
    return find_folder(
        "VoxPopuli",
        data_dir,
        FOLDER_NAMES,
        lambda folder: any((folder / DATA).glob("*/asr_*.tsv")),
        f"a folder with {DATA}/LANGUAGE/asr_test.tsv or the like",
        f"follow {PAGE}: python -m voxpopuli.download_audios --root ROOT --subset asr, then "
        "python -m voxpopuli.get_asr_data --root ROOT --lang LANGUAGE",
    )


def prepare_voxpopuli(
    root: str | Path,
    *,
    seed: int = 0,
    test_share: float = 0.5,
    language: str = "de",
    parts: Sequence[str] = ("dev", "test"),
    min_utterances: int = 20,
) -> list[Utterance]:
    """Read one language, each speaker split by the day of the speech, sorted by id.

    A speaker heard on several days has whole days on either side (`split_groups`); one of a single
    day has the first utterances in adapt and the rest in test (`split_in_order`). ``language`` is
    a code such as "de"; it begins every id and speaker ("de/..."), so that languages can be joined.
    Left out, with a count in the log, are rows of no known speaker or of no words, and speakers
    with fewer than ``min_utterances``. Raises ``ManifestError`` for a language or part that is not
    there, and for missing recordings.
    """
    root = Path(root)
    folder = root / DATA / language
    if not folder.is_dir():
        there = sorted(each.parent.name for each in (root / DATA).glob("*/asr_test.tsv"))
        raise ManifestError(
            f"{folder}: expected the language {language!r}, found {', '.join(there) or 'none'}; "
            "get it as find_voxpopuli says, or name another"
        )
    read: list[Utterance] = []
    where: dict[str, Path] = {}
    nobody, wordless = [], []
    for part in dict.fromkeys(parts):
        if part not in PARTS:
            raise ValueError(f"parts: expected some of {', '.join(PARTS)}, found {part!r}")
        table = folder / f"asr_{part}.tsv"
        for line, row in read_tab_separated(table, COLUMNS):
            day = DAY.match(row["id"])
            if day is None or "/" in row["id"]:
                raise ManifestError(
                    f"{table}, line {line}: expected an id that begins with a day (YYYYMMDD-), "
                    f"found {row['id']!r}; get the table again"
                )
            text = " ".join(row["normalized_text"].split())
            if row["speaker_id"].lower() in NOBODY:
                nobody.append(row["id"])
            elif not text:
                wordless.append(row["id"])
            else:
                audio = folder / day["year"] / f"{row['id']}.ogg"
                speaker = f"{language}/{row['speaker_id']}"
                read.append(Utterance(f"{language}/{row['id']}", audio, speaker, text))
                where.setdefault(read[-1].id, table)
    warn_skipped("VoxPopuli", "no known speaker", nobody)
    warn_skipped("VoxPopuli", "no transcript", wordless)
    count = Counter(each.speaker for each in read)
    few = sorted(speaker for speaker, n in count.items() if n < min_utterances)
    warn_skipped("VoxPopuli", f"speakers with fewer than {min_utterances} utterances", few)
    kept = [each for each in read if count[each.speaker] >= min_utterances]
    split = apart_by_group(kept, _day_of, test_share, seed)
    return corpus_utterances(folder, ((each, where[each.id]) for each in split))


def _day_of(utterance: Utterance) -> str:
    return utterance.id.partition("/")[2].partition("-")[0]
