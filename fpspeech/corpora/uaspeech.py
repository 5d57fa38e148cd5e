"""UASpeech: single words by people with dysarthria (cerebral palsy) and by controls.

As published: ``audio/VARIANT/SPEAKER/SPEAKER_BLOCK_WORD_MICROPHONE.wav`` (F02_B1_CW1_M5.wav, 16
kHz), where older releases have no VARIANT ("original", "noisereduce", "normalized") and keep
controls (CF02, CM01) below ``audio/control``. The words are in ``mlf/SPEAKER/SPEAKER_word.mlf``,
and in ``doc/speaker_wordlist.xls``, whose sheet Word_filename can be saved as CSV.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from fpspeech.corpora.layout import (
    corpus_utterances,
    find_folder,
    numbered_lines,
    require_nothing_left,
    visible_files,
)
from fpspeech.corpora.utterance import ManifestError, Utterance

PAGE = "https://speechtechnology.web.illinois.edu/uaspeech/"
FOLDER_NAMES = ("UASpeech", "uaspeech")
NAME = re.compile(
    r"(?P<speaker>C?[FM]\d{2})_(?P<block>B\d)_(?P<word>(?:CW|UW|C|D|L)\w+)_(?P<microphone>M\d)"
)
VARIANTS = ("original", "noisereduce", "normalized")
BLOCKS = ("B1", "B2", "B3")


def find_uaspeech(data_dir: str | Path | None = None) -> Path:
    """Return the folder that holds ``audio``; raises ``CorpusNotFound``."""
    return find_folder(
        "UASpeech",
        data_dir,
        FOLDER_NAMES,
        lambda folder: (folder / "audio").is_dir(),
        "a folder with audio/",
        f"ask for it as {PAGE} says, accept its terms, and unpack it",
    )


def prepare_uaspeech(
    root: str | Path,
    *,
    seed: int = 0,
    test_share: float = 1 / 3,
    test_blocks: Collection[str] = ("B2",),
    microphone: str = "M5",
    variant: str = "original",
    wordlist: str | Path | None = None,
) -> list[Utterance]:
    """Read the recordings of one microphone, split by block, sorted by id.

    The corpus is recorded in three blocks; as in the literature, B2 tests, and B1 and B3 adapt.
    ``seed`` and ``test_share`` change nothing: the blocks decide. Digits, letters, commands and
    common words occur in every block; only uncommon words (UW) differ between blocks. ``variant``
    is the folder below ``audio`` where there are several. ``wordlist`` is a CSV with the columns
    ``WORD`` and ``FILE NAME``; by default the ``mlf`` files are read. Recordings of other
    microphones are not read. Ids are ``SPEAKER_BLOCK_WORD``. Raises ``ManifestError`` for names of
    another form and for recordings whose word is not known, ``ValueError`` for another block.
    """
    del seed, test_share
    for block in test_blocks:
        if block not in BLOCKS:
            raise ValueError(f"test_blocks: expected some of {', '.join(BLOCKS)}, found {block!r}")
    root = Path(root)
    words = None if wordlist is None else _read_wordlist(Path(wordlist))
    labels: dict[str, dict[str, str]] = {}
    read, unknown = [], []
    for audio in _recordings(root, variant):
        parts = NAME.fullmatch(audio.stem)
        if parts is None:
            raise ManifestError(
                f"{audio}: expected a name like F02_B1_CW1_M5.wav, found another; remove it"
            )
        if parts["microphone"] != microphone:
            continue
        speaker, block, word = parts["speaker"], parts["block"], parts["word"]
        if words is not None:
            text = words.get(word) or words.get(f"{block}_{word}")
        else:
            if speaker not in labels:
                labels[speaker] = _read_labels(root / "mlf" / speaker / f"{speaker}_word.mlf")
            text = labels[speaker].get(audio.stem)
        if text is None:
            unknown.append(audio)
            continue
        split = "test" if block in test_blocks else "adapt"
        identity = f"{speaker}_{block}_{word}"
        read.append((Utterance(identity, audio, speaker, text, split), audio))
    require_nothing_left(root, unknown, "a word in the word list or mlf/")
    return corpus_utterances(root, read)


def _recordings(root: Path, variant: str) -> list[Path]:
    folder = root / "audio"
    there = [each for each in VARIANTS if (folder / each).is_dir()]
    if (folder / variant).is_dir():
        folder /= variant
    elif there or variant != VARIANTS[0]:
        raise ManifestError(
            f"{folder}: expected the variant {variant!r}, found {', '.join(there) or 'none'}; "
            "name one that is there"
        )
    # A speaker's folder, or that of a control below control/.
    found = []
    for speaker in sorted({path.parent for path in folder.rglob("*") if path.is_file()}):
        if not any(part.startswith(".") for part in speaker.relative_to(root).parts):
            found += visible_files(speaker, ".wav")
    return found


def _read_labels(path: Path) -> dict[str, str]:
    """Read an HTK master label file: per quoted name the labels until a line with a dot."""
    words: dict[str, list[str]] = {}
    name = None
    for number, line in numbered_lines(path, fallback="cp1252"):
        line = line.strip()
        if line.startswith('"'):
            name = PurePosixPath(line.strip('"')).stem
            words[name] = []
        elif line == ".":
            name = None
        elif name is not None:
            words[name].append(line.split()[-1])  # after the times, where there are any
        elif line != "#!MLF!#":
            raise ManifestError(
                f'{path}, line {number}: expected a name like "*/F02_B1_CW1_M5.lab", '
                f"found {line!r}; get the file again"
            )
    return {name: " ".join(said) for name, said in words.items() if said}


def _read_wordlist(path: Path) -> dict[str, str]:
    if path.suffix.lower() in (".xls", ".xlsx"):
        raise ManifestError(
            f"{path}: expected CSV, found a workbook; save its sheet Word_filename as CSV"
        )
    reader = csv.DictReader(line for _, line in numbered_lines(path, fallback="cp1252"))
    columns = ("WORD", "FILE NAME")
    if not set(columns) <= set(reader.fieldnames or ()):
        raise ManifestError(
            f"{path}: expected the columns {' and '.join(columns)}, found "
            f"{', '.join(reader.fieldnames or ()) or 'none'}; save the sheet Word_filename as CSV"
        )
    found = ((row["FILE NAME"] or "", row["WORD"] or "") for row in reader)
    return {key.strip(): " ".join(word.split()) for key, word in found if word.strip()}
