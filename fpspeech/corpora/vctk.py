"""VCTK 0.92: newspaper sentences read by about 110 speakers of English with many accents.

As published: ``wav48_silence_trimmed/SPEAKER/SPEAKER_NUMBER_mic1.flac`` (48 kHz; mic2 beside it)
and ``txt/SPEAKER/SPEAKER_NUMBER.txt``. The transcripts of p315 were lost, and of some transcripts
there is no recording; both are known, counted and skipped.
"""

from __future__ import annotations

import re
from pathlib import Path

from fpspeech.corpora.apart import prompt_words, split_of_prompt
from fpspeech.corpora.archives import Archive, fetch_archive
from fpspeech.corpora.layout import (
    corpus_utterances,
    find_folder,
    read_prompt,
    visible_files,
    visible_folders,
    warn_skipped,
)
from fpspeech.corpora.utterance import ManifestError, Utterance

FOLDER = "VCTK-Corpus-0.92"
FOLDER_NAMES = (FOLDER, "VCTK-Corpus", "VCTK")
AUDIO, TEXT = "wav48_silence_trimmed", "txt"
PAGE = "https://datashare.ed.ac.uk/handle/10283/3443"
NAME = re.compile(r"(?P<speaker>[ps]\d+)_(?P<number>\d+)_mic(?P<microphone>[12])")
COMMON_PROMPTS = 24  # the first ones, which every speaker reads under the same number

ARCHIVE = Archive(
    "https://datashare.is.ed.ac.uk/bitstream/handle/10283/3443/VCTK-Corpus-0.92.zip",
    # As torchaudio checks it.
    sha256="f96258be9fdc2cbff6559541aae7ea4f59df3fcaf5cf963aae5ca647357e359c",
    into=FOLDER,
)


def find_vctk(data_dir: str | Path | None = None) -> Path:
    """Return the folder that holds ``wav48_silence_trimmed``; raises ``CorpusNotFound``."""
    return find_folder(
        "VCTK",
        data_dir,
        FOLDER_NAMES,
        lambda folder: (folder / AUDIO).is_dir() and (folder / TEXT).is_dir(),
        f"a folder with {AUDIO} and {TEXT}",
        f"get VCTK-Corpus-0.92.zip from {PAGE} and unpack it, or call download_vctk",
    )


def download_vctk(target: str | Path) -> Path:
    """Download and unpack version 0.92; returns ``target/VCTK-Corpus-0.92``.

    What is already there is not fetched again. Raises ``ArchiveError``.
    """
    fetch_archive(ARCHIVE, Path(target))
    return Path(target) / FOLDER


def prepare_vctk(
    root: str | Path, *, seed: int = 0, test_share: float = 0.5, microphone: int = 1
) -> list[Utterance]:
    """Read the recordings of one microphone (1 or 2), split by prompt, sorted by id.

    A prompt is on one side for everybody (`split_of_prompt`). The first 24 are told by their
    number, which all speakers share; the others by their words, since a number means another
    sentence for every speaker there. Skipped, with a count in the log, are recordings without a
    transcript and transcripts without a recording. Raises ``ManifestError`` for names of another
    form and transcripts without words, and ``ValueError`` for another microphone.
    """
    if microphone not in (1, 2):
        raise ValueError(f"microphone: expected 1 or 2, found {microphone}")
    root = Path(root)
    read, untranscribed = [], []
    unrecorded: list[Path] = []
    for folder in visible_folders(root / AUDIO):
        texts = {each.stem: each for each in visible_files(root / TEXT / folder.name, ".txt")}
        for audio in visible_files(folder, ".flac"):
            parts = NAME.fullmatch(audio.stem)
            if parts is None:
                raise ManifestError(
                    f"{audio}: expected a name like p225_001_mic1.flac, found another; remove it"
                )
            if int(parts["microphone"]) != microphone:
                continue
            identity = f"{parts['speaker']}_{parts['number']}"
            path = texts.pop(identity, None)
            if path is None:
                untranscribed.append(audio)
                continue
            text = read_prompt(path, fallback="cp1252")
            if not text:
                raise ManifestError(f"{path}: expected the words of a prompt, found none")
            number = int(parts["number"])
            prompt = f"{number:03d}" if number <= COMMON_PROMPTS else prompt_words(text)
            split = split_of_prompt(prompt, test_share, seed)
            read.append((Utterance(identity, audio, parts["speaker"], text, split), path))
        unrecorded += texts.values()
    warn_skipped("VCTK", "no transcript", untranscribed)
    warn_skipped("VCTK", f"no recording of microphone {microphone}", unrecorded)
    return corpus_utterances(root, read)
