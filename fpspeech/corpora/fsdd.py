"""Free Spoken Digit Dataset: single English digits, 8 kHz (https://github.com/Jakobovski).

As published: ``recordings/DIGIT_SPEAKER_TAKE.wav``, fifty takes of each digit and speaker.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fpspeech.corpora.apart import split_in_order
from fpspeech.corpora.archives import Archive, fetch_archive
from fpspeech.corpora.layout import corpus_utterances, find_folder, visible_files
from fpspeech.corpora.utterance import ManifestError, Utterance

DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
FOLDER_NAMES = ("free-spoken-digit-dataset", "free-spoken-digit-dataset-master", "fsdd")
PAGE = "https://github.com/Jakobovski/free-spoken-digit-dataset"
NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<take>\d+)")


def find_fsdd(data_dir: str | Path | None = None) -> Path:
    """Return the folder that holds ``recordings``; raises ``CorpusNotFound``."""
    return find_folder(
        "FSDD",
        data_dir,
        FOLDER_NAMES,
        lambda folder: bool(visible_files(_recordings(folder), ".wav")),
        "a folder with recordings/0_theo_0.wav and others",
        f"git clone {PAGE}, or call download_fsdd",
    )


def download_fsdd(target: str | Path) -> Path:
    """Download and unpack the corpus; returns ``target/free-spoken-digit-dataset-master``.

    What is already there is not fetched again. GitHub makes the archive anew, so there is no
    checksum of it; it is read to its end before it counts. Raises ``ArchiveError``.
    """
    fetch_archive(Archive(f"{PAGE}/archive/refs/heads/master.zip", name="fsdd.zip"), Path(target))
    return Path(target) / "free-spoken-digit-dataset-master"


def prepare_fsdd(
    root: str | Path,
    *,
    seed: int = 0,
    test_share: float = 0.5,
    speakers: Sequence[str] | None = None,
) -> list[Utterance]:
    """Read the corpus, or some of its speakers, each split by take, sorted by id.

    Takes with low numbers adapt and takes with high numbers test (`split_in_order` of a speaker's
    takes), since takes recorded after each other are alike; ``seed`` changes nothing. The ten
    words are the same on both sides: there are no others. Ids are ``SPEAKER-DIGIT-TAKE``. Raises
    ``ManifestError`` for a name of another form, and for a speaker there is not.
    """
    root = Path(root)
    takes: dict[str, set[str]] = {}
    read = []
    for audio in visible_files(_recordings(root), ".wav"):
        parts = NAME.fullmatch(audio.stem)
        if parts is None:
            raise ManifestError(
                f"{audio}: expected a name like 0_theo_0.wav found another; rename or remove it"
            )
        take = f"{int(parts['take']):04d}"
        takes.setdefault(parts["speaker"], set()).add(take)
        if speakers is None or parts["speaker"] in speakers:
            read.append((audio, int(parts["digit"]), parts["speaker"], take))
    for speaker in speakers or ():
        if speaker not in takes:
            raise ManifestError(
                f"{root}: expected recordings of {speaker!r}, found those of "
                f"{', '.join(sorted(takes))}; name speakers among them"
            )
    splits = {speaker: split_in_order(own, test_share) for speaker, own in takes.items()}
    return corpus_utterances(
        root,
        (
            (
                Utterance(
                    f"{speaker}-{digit}-{int(take):02d}",
                    audio,
                    speaker,
                    DIGITS[digit],
                    splits[speaker][take],
                ),
                audio,
            )
            for audio, digit, speaker, take in read
        ),
    )


def _recordings(root: Path) -> Path:
    inner = root / "recordings"
    return inner if inner.is_dir() else root
