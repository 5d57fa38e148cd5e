"""speechocean762: English read by Mandarin speakers, children and adults (Zhang et al., 2021).

As published, in the style of Kaldi: ``WAVE/SPEAKERxxxx/*.WAV`` (16 kHz), and in ``train/`` and
``test/`` the tables ``wav.scp`` (id and path), ``text``, ``utt2spk``, ``spk2age`` and
``spk2gender``. A speaker is in train or in test, not in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fpspeech.corpora.apart import apart_by_group, prompt_words
from fpspeech.corpora.archives import Archive, fetch_archive
from fpspeech.corpora.layout import corpus_utterances, find_folder, read_keyed_lines
from fpspeech.corpora.utterance import ManifestError, Utterance, some

FOLDER_NAMES = ("speechocean762",)
PARTS = ("test", "train")
PAGE = "https://www.openslr.org/101"
URL = "https://www.openslr.org/resources/101/speechocean762.tar.gz"


@dataclass(frozen=True)
class Reader:
    """Who reads: ``age`` in years, ``gender`` "f" or "m"; None where the corpus does not say."""

    speaker: str
    age: int | None
    gender: str | None


def find_speechocean762(data_dir: str | Path | None = None) -> Path:
    """Return the folder that holds ``WAVE`` and ``test``; raises ``CorpusNotFound``."""
    return find_folder(
        "speechocean762",
        data_dir,
        FOLDER_NAMES,
        lambda folder: any((folder / part / "wav.scp").is_file() for part in PARTS),
        "a folder with test/wav.scp",
        f"get {PAGE} and unpack it, or call download_speechocean762",
    )


def download_speechocean762(target: str | Path) -> Path:
    """Download and unpack the corpus; returns ``target/speechocean762``.

    What is already there is not fetched again. No checksum is known to us, so the archive is read
    to its end before it counts. Raises ``ArchiveError``.
    """
    fetch_archive(Archive(URL), Path(target))
    return Path(target) / "speechocean762"


def prepare_speechocean762(
    root: str | Path,
    *,
    seed: int = 0,
    test_share: float = 0.5,
    parts: Sequence[str] | None = None,
) -> list[Utterance]:
    """Read the corpus, each speaker split by prompt, sorted by id.

    ``parts`` is by default those of "test" and "train" that are there. Each speaker's prompts are
    drawn by `split_groups`, so no prompt, as told by its words, is on both sides of a speaker, and
    both sides have their share of every speaker. Raises ``ManifestError`` for tables that do not
    name the same utterances and for missing recordings.
    """
    root = Path(root)
    where: dict[str, Path] = {}
    utterances = []
    for part in _parts(root, parts):
        for utterance in _part(root, part):
            where.setdefault(utterance.id, root / part / "wav.scp")
            utterances.append(utterance)
    split = apart_by_group(utterances, _prompt_of, test_share, seed)
    return corpus_utterances(root, [(each, where[each.id]) for each in split])


def read_speechocean762_readers(
    root: str | Path, parts: Sequence[str] | None = None
) -> dict[str, Reader]:
    """Read ages and genders of the speakers, by name; raises ``ManifestError``."""
    root = Path(root)
    readers = {}
    for part in _parts(root, parts):
        ages = read_keyed_lines(root / part / "spk2age", "an age")
        genders = read_keyed_lines(root / part / "spk2gender", "a gender")
        for speaker in sorted({*ages, *genders}):
            age = ages.get(speaker)
            if age is not None and not age.isdecimal():
                raise ManifestError(
                    f"{root / part / 'spk2age'}: expected years as the age of {speaker}, "
                    f"found {age!r}; correct it"
                )
            readers[speaker] = Reader(speaker, int(age) if age else None, genders.get(speaker))
    return readers


def _prompt_of(utterance: Utterance) -> str:
    return prompt_words(utterance.text or "")


def _parts(root: Path, parts: Sequence[str] | None) -> list[str]:
    if parts is None:
        return [each for each in PARTS if (root / each / "wav.scp").is_file()]
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"parts: expected some of {', '.join(PARTS)}, found {part!r}")
    return list(dict.fromkeys(parts))


def _part(root: Path, part: str) -> Iterator[Utterance]:
    folder = root / part
    paths = read_keyed_lines(folder / "wav.scp", "a path")
    texts = read_keyed_lines(folder / "text")
    speakers = read_keyed_lines(folder / "utt2spk", "a speaker")
    for name, table in (("text", texts), ("utt2spk", speakers)):
        odd = sorted(table.keys() ^ paths.keys())
        if odd:
            raise ManifestError(
                f"{folder / name}: expected the ids of wav.scp, found a difference in {some(odd)}; "
                "get the corpus again"
            )
    for identity, path in paths.items():
        yield Utterance(identity, root / path, speakers[identity], texts[identity])
