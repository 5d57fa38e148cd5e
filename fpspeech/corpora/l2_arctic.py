"""L2-ARCTIC: the CMU ARCTIC prompts read in English by people of six first languages.

As published, for each prompt: ``SPEAKER/wav/arctic_a0001.wav`` (44.1 kHz) and
``SPEAKER/transcript/arctic_a0001.txt``, with annotations beside them. An archive a speaker may
leave ``SPEAKER/SPEAKER/wav``, which is read as well. The spontaneous ``suitcase_corpus`` is not
read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fpspeech.corpora.apart import split_of_prompt
from fpspeech.corpora.layout import (
    corpus_utterances,
    find_folder,
    read_prompt,
    require_nothing_left,
    visible_files,
    visible_folders,
)
from fpspeech.corpora.utterance import ManifestError, Utterance

PAGE = "https://psi.engr.tamu.edu/l2-arctic-corpus/"
FOLDER_NAMES = ("l2arctic_release_v5.0", "l2arctic_release_v5", "L2-ARCTIC", "l2arctic")
PROMPT = re.compile(r"arctic_[ab]\d{4}")


def find_l2_arctic(data_dir: str | Path | None = None) -> Path:
    """Return the folder that holds one folder a speaker; raises ``CorpusNotFound``."""
    return find_folder(
        "L2-ARCTIC",
        data_dir,
        FOLDER_NAMES,
        lambda folder: next(_speakers(folder), None) is not None,
        "folders of speakers with wav/arctic_a0001.wav and others",
        f"ask for it with the form at {PAGE}, accept the licence and unpack it",
    )


def prepare_l2_arctic(
    root: str | Path, *, seed: int = 0, test_share: float = 0.5
) -> list[Utterance]:
    """Read the corpus, split by prompt, sorted by id.

    All speakers read the same prompts, so ``arctic_a0001`` is on one side for every speaker
    (`split_of_prompt` of that id). Ids are ``SPEAKER/arctic_a0001``. Raises ``ManifestError`` for a
    recording without a transcript, a transcript without words, and one without a recording.
    """
    root = Path(root)
    return corpus_utterances(root, _read(root, test_share, seed))


def _read(root: Path, test_share: float, seed: int) -> Iterator[tuple[Utterance, Path]]:
    for speaker, folder in _speakers(root):
        prompts = {each.stem: each for each in visible_files(folder / "transcript", ".txt")}
        recordings = {each.stem: each for each in visible_files(folder / "wav", ".wav")}
        without = [audio for stem, audio in recordings.items() if stem not in prompts]
        require_nothing_left(folder, without, "a file in transcript/")
        for stem, path in prompts.items():
            if PROMPT.fullmatch(stem) is None:
                raise ManifestError(
                    f"{path}: expected a name like arctic_a0001.txt, found another; remove it"
                )
            text = read_prompt(path, fallback="cp1252")
            if not text:
                raise ManifestError(f"{path}: expected the words of a prompt, found none")
            audio = recordings.get(stem, folder / "wav" / f"{stem}.wav")
            split = split_of_prompt(stem, test_share, seed)
            yield Utterance(f"{speaker}/{stem}", audio, speaker, text, split), path


def _speakers(root: Path) -> Iterator[tuple[str, Path]]:
    for each in visible_folders(root):
        for folder in (each, each / each.name):
            if any(PROMPT.fullmatch(wav.stem) for wav in visible_files(folder / "wav", ".wav")):
                yield each.name, folder
                break
