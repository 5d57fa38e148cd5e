"""Finding a corpus and reading the layout it is published in: what the corpora have in common."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from fpspeech.corpora.utterance import (
    Found,
    ManifestError,
    Utterance,
    require_audio_files,
    require_distinct_ids,
    require_splits_apart,
    some,
)

DATA_VARIABLE = "FPSPEECH_DATA"

log = logging.getLogger(__name__)


class CorpusNotFound(ManifestError):
    """A corpus that is not where it was looked for; says where that was, and how to get it."""


def find_folder(
    corpus: str,
    data_dir: str | Path | None,
    folder_names: Sequence[str],
    is_corpus: Callable[[Path], bool],
    expected: str,
    remedy: str,
) -> Path:
    """Return the folder of a corpus: ``data_dir``, or else one below ``$FPSPEECH_DATA``.

    Below either, the ``folder_names`` the corpus is published under are tried, too. ``expected``
    says in words what ``is_corpus`` looks for. Raises ``CorpusNotFound`` with the remedy.
    """
    if data_dir is not None:
        root = Path(data_dir)
    elif os.environ.get(DATA_VARIABLE):
        root = Path(os.environ[DATA_VARIABLE])
    else:
        raise CorpusNotFound(
            f"{corpus}: expected a data folder, found neither one given nor "
            f"${DATA_VARIABLE}; {remedy}"
        )
    tried = [root / name for name in folder_names]
    if data_dir is not None:  # $FPSPEECH_DATA holds many corpora and is none itself
        tried.append(root)
    for folder in tried:
        if folder.is_dir() and is_corpus(folder):
            return folder
    raise CorpusNotFound(
        f"{corpus}: expected {expected}, found none in {some([str(each) for each in tried])}; "
        f"{remedy}"
    )


def visible_files(folder: Path, suffix: str) -> list[Path]:
    """Return the files of one folder with a suffix in any case, sorted, without hidden ones."""
    if not folder.is_dir():
        return []
    return sorted(
        each
        for each in folder.iterdir()
        # macOS writes ._NAME.wav beside NAME.wav.
        if each.suffix.lower() == suffix and not each.name.startswith(".") and each.is_file()
    )


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders of a folder, sorted, without hidden ones."""
    return sorted(
        each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")
    )


def read_keyed_lines(path: Path, what: str = "its words") -> dict[str, str]:
    """Read a file of lines ``KEY words`` (Kaldi tables, LibriSpeech transcripts) as key -> words.

    Keys end at the first spaces or tab; spaces in a row become one; a byte order mark, CRLF and
    blank lines are passed over. Raises ``ManifestError``, with the file and line, for a missing
    file, a key without words, a key that occurs twice, and bytes that are not UTF-8.
    """
    found: dict[str, str] = {}
    for number, line in numbered_lines(path):
        key, *words = line.split()
        where = f"{path}, line {number}"
        if not words:
            raise ManifestError(
                f"{where}: expected an id and {what}, found only {key!r}; complete or "
                "remove the line"
            )
        if key in found:
            raise ManifestError(
                f"{where}: expected an id of its own, found {key!r} for the second time; "
                "remove one of the lines"
            )
        found[key] = " ".join(words)
    return found


def read_tab_separated(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the fields by name of each line of a table with a header line.

    Only tabs separate: a sentence may begin with a quotation mark that never ends. Raises
    ``ManifestError`` where one of ``columns`` is not in the header, and for lines of another
    length than the header.
    """
    header: list[str] = []
    for number, line in numbered_lines(path):
        fields = [field.strip() for field in line.split("\t")]
        if not header:
            header = fields
            missing = [name for name in columns if name not in header]
            if missing:
                raise ManifestError(
                    f"{path}: expected the column {missing[0]!r}, found {', '.join(header)}; "
                    "check that it is this corpus' table"
                )
            continue
        if len(fields) != len(header):
            raise ManifestError(
                f"{path}, line {number}: expected {len(header)} fields between tabs, found "
                f"{len(fields)}; get the table again"
            )
        yield number, dict(zip(header, fields, strict=True))


def numbered_lines(path: Path, fallback: str | None = None) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that are not blank, counted from 1, one in memory at a time.

    UTF-8, with or without a byte order mark, or else ``fallback``, which is for corpora from before
    everyone wrote UTF-8. Raises ``ManifestError``, with the file and line, for a missing file and
    for bytes of neither.
    """
    if not path.is_file():
        raise ManifestError(f"{path}: expected this file of the corpus, found none; get it again")
    with path.open("rb") as file:
        # As bytes, since lines of text would also end at a lone CR.
        for number, content in enumerate(file, start=1):
            line = _decoded(f"{path}, line {number}", content, fallback)
            if line.strip():
                yield number, line.rstrip("\r\n")


def _decoded(where: str, content: bytes, fallback: str | None) -> str:
    for encoding in ("utf-8-sig", *([fallback] if fallback else [])):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError as error:
            bad = content[error.start]
    raise ManifestError(
        f"{where}: expected UTF-8{f' or {fallback}' if fallback else ''}, found the byte "
        f"0x{bad:02x}; save the file as UTF-8"
    )


def read_prompt(path: Path, fallback: str | None = None) -> str:
    """Read the words of a file that holds one prompt, with single spaces; may be empty."""
    return " ".join(word for _, line in numbered_lines(path, fallback) for word in line.split())


def corpus_utterances(root: Path, utterances: Iterable[tuple[Utterance, Path]]) -> list[Utterance]:
    """Check a corpus that was read, and return it sorted by id.

    Each utterance comes with the file that names it, for the errors. Raises ``ManifestError``
    where there are none, where two have one id, where audio is missing or on both sides.
    """
    found = [Found(utterance, str(where)) for utterance, where in utterances]
    if not found:
        raise ManifestError(f"{root}: expected utterances, found none; check the folder")
    require_distinct_ids(found)
    require_audio_files(root, found)
    require_splits_apart(found)
    return sorted((each.utterance for each in found), key=lambda utterance: utterance.id)


def require_nothing_left(root: Path, left: Iterable[Path], expected: str) -> None:
    """Raise ``ManifestError`` where recordings have no transcript; names the first of them."""
    names = sorted(str(each) for each in left)
    if names:
        raise ManifestError(
            f"{root}: expected {expected} for every recording, found none for {some(names)}; "
            "add it, or remove the recording"
        )


def warn_skipped(corpus: str, reason: str, skipped: Sequence[Path | str]) -> None:
    """Say in the log how many recordings were passed over, why, and which ones come first."""
    if skipped:
        names = sorted(str(each) for each in skipped)
        log.warning("%s: skipped %d, %s: %s", corpus, len(names), reason, some(names))
