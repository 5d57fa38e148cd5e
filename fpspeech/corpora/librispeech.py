"""LibriSpeech: read English from audiobooks, 16 kHz (Panayotov et al., 2015).

As published: ``PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac``, and one
``SPEAKER-CHAPTER.trans.txt`` a chapter with a line ``SPEAKER-CHAPTER-NUMBER WORDS`` for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fpspeech.corpora.apart import apart_by_group
from fpspeech.corpora.archives import Archive, fetch_archive
from fpspeech.corpora.layout import (
    corpus_utterances,
    find_folder,
    read_keyed_lines,
    require_nothing_left,
    visible_files,
    visible_folders,
)
from fpspeech.corpora.utterance import ManifestError, Utterance

FOLDER_NAMES = ("LibriSpeech",)
PAGE = "https://www.openslr.org/12"

SHA256 = {
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
}
"""Of PART.tar.gz, as torchaudio checks them."""

PARTS = tuple(SHA256)


def find_librispeech(data_dir: str | Path | None = None) -> Path:
    """Return the folder that holds ``test-other`` and the like; raises ``CorpusNotFound``."""
    return find_folder(
        "LibriSpeech",
        data_dir,
        FOLDER_NAMES,
        lambda folder: any((folder / part).is_dir() for part in PARTS),
        f"a folder with one of {', '.join(PARTS)}",
        f"get {PAGE} (test-other.tar.gz) and unpack it, or call download_librispeech",
    )


def download_librispeech(target: str | Path, parts: Sequence[str] = ("test-other",)) -> Path:
    """Download parts and unpack them below ``target``; returns ``target/LibriSpeech``.

    What is already there is not fetched again. Raises ``ArchiveError``, and ``ValueError`` for a
    part that there is not.
    """
    for part in parts:
        _require_part(part)
        url = f"https://www.openslr.org/resources/12/{part}.tar.gz"
        fetch_archive(Archive(url, sha256=SHA256[part]), Path(target))
    return Path(target) / "LibriSpeech"


def prepare_librispeech(
    root: str | Path,
    *,
    seed: int = 0,
    test_share: float = 0.5,
    parts: Sequence[str] | None = None,
) -> list[Utterance]:
    """Read parts of the corpus, each speaker split by chapter, sorted by id.

    ``parts`` is by default every dev and test part that is there: trained models may have seen the
    train parts. A speaker with several chapters has whole chapters on either side (`split_groups`);
    one with a single chapter has its first utterances in adapt and the rest in test
    (`split_in_order`). Raises ``ManifestError`` for a transcript line without a recording, a
    recording without a line, and a part that is not there.
    """
    root = Path(root)
    if parts is None:
        parts = [each for each in PARTS if not each.startswith("train") and (root / each).is_dir()]
        if not parts:
            raise ManifestError(
                f"{root}: expected a dev or test part of LibriSpeech, found none; name the parts "
                "to use, knowing that trained models may have seen the train parts"
            )
    where: dict[str, Path] = {}
    utterances = []
    for part in dict.fromkeys(parts):
        _require_part(part)
        for utterance, transcript in _part(root / part):
            where.setdefault(utterance.id, transcript)
            utterances.append(utterance)
    split = apart_by_group(utterances, chapter_of, test_share, seed)
    return corpus_utterances(root, [(each, where[each.id]) for each in split])


def chapter_of(utterance: Utterance) -> str:
    """Return ``SPEAKER-CHAPTER`` of an utterance."""
    return utterance.id.rpartition("-")[0]


def _part(folder: Path) -> Iterator[tuple[Utterance, Path]]:
    if not folder.is_dir():
        raise ManifestError(
            f"{folder}: expected this part of LibriSpeech, found none; get it from {PAGE}"
        )
    for speaker in visible_folders(folder):
        for chapter in visible_folders(speaker):
            name = f"{speaker.name}-{chapter.name}"
            transcript = chapter / f"{name}.trans.txt"
            lines = read_keyed_lines(transcript)
            recordings = visible_files(chapter, ".flac")
            without = [each for each in recordings if each.stem not in lines]
            require_nothing_left(chapter, without, f"a line in {transcript.name}")
            for identity, text in lines.items():
                if not identity.startswith(f"{name}-"):
                    raise ManifestError(
                        f"{transcript}: expected ids that begin with {name}-, found {identity!r}; "
                        "get the file again"
                    )
                audio = chapter / f"{identity}.flac"
                yield Utterance(identity, audio, speaker.name, text), transcript


def _require_part(part: str) -> None:
    if part not in PARTS:
        raise ValueError(f"parts: expected some of {', '.join(PARTS)}, found {part!r}")
