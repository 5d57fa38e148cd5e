"""Speech Commands: one-second recordings of single words by thousands of people (Warden, 2018).

As published: ``WORD/SPEAKER_nohash_NUMBER.wav`` (16 kHz), where NUMBER counts how often the speaker
said that word before, and ``_background_noise_``, which nobody speaks in and is not read.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from fpspeech.corpora.apart import apart_by_group
from fpspeech.corpora.archives import Archive, fetch_archive
from fpspeech.corpora.layout import (
    corpus_utterances,
    find_folder,
    visible_files,
    visible_folders,
    warn_skipped,
)
from fpspeech.corpora.utterance import ManifestError, Utterance

FOLDER = "speech_commands_v0.02"
FOLDER_NAMES = (FOLDER, "SpeechCommands/speech_commands_v0.02", "speech_commands")
NOISE = "_background_noise_"
NAME = re.compile(r"(?P<speaker>[0-9a-f]+)_nohash_(?P<number>\d+)")

ARCHIVE = Archive(
    "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
    # As torchaudio checks it.
    sha256="af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    into=FOLDER,
)


def find_speech_commands(data_dir: str | Path | None = None) -> Path:
    """Return the folder that holds one folder a word; raises ``CorpusNotFound``."""
    return find_folder(
        "Speech Commands",
        data_dir,
        FOLDER_NAMES,
        _has_words,
        "folders of words with files like 0a7c2a8d_nohash_0.wav",
        f"get {ARCHIVE.url} and unpack it, or call download_speech_commands",
    )


def download_speech_commands(target: str | Path) -> Path:
    """Download and unpack version 0.02; returns ``target/speech_commands_v0.02``.

    What is already there is not fetched again. Raises ``ArchiveError``.
    """
    fetch_archive(ARCHIVE, Path(target))
    return Path(target) / FOLDER


def prepare_speech_commands(
    root: str | Path, *, seed: int = 0, test_share: float = 0.5, min_utterances: int = 20
) -> list[Utterance]:
    """Read the corpus, each speaker split by word, sorted by id.

    The words are the prompts: no word of a speaker is on both sides (`split_groups`), so a personal
    model is tested on words it did not adapt to. Left out, with a count in the log, are speakers
    with fewer than ``min_utterances`` recordings, and those who said a single word. An id is
    ``SPEAKER-WORD-NUMBER``. Raises ``ManifestError`` for a name of another form.
    """
    root = Path(root)
    read = []
    for folder in visible_folders(root):
        if folder.name == NOISE:
            continue
        for audio in visible_files(folder, ".wav"):
            parts = NAME.fullmatch(audio.stem)
            if parts is None:
                raise ManifestError(
                    f"{audio}: expected a name like 0a7c2a8d_nohash_0.wav, found another; remove it"
                )
            speaker, word = parts["speaker"], folder.name
            identity = f"{speaker}-{word}-{int(parts['number'])}"
            read.append(Utterance(identity, audio, speaker, word))
    count = Counter(each.speaker for each in read)
    words: dict[str, set[str | None]] = {}
    for each in read:
        words.setdefault(each.speaker, set()).add(each.text)
    kept = [each for each in read if count[each.speaker] >= min_utterances]
    kept = [each for each in kept if len(words[each.speaker]) > 1]
    left_out = sorted({each.speaker for each in read} - {each.speaker for each in kept})
    reason = f"speakers with fewer than {min_utterances} recordings or of a single word"
    warn_skipped("Speech Commands", reason, left_out)
    split = apart_by_group(kept, lambda utterance: utterance.text or "", test_share, seed)
    return corpus_utterances(root, ((each, each.audio) for each in split))


def _has_words(folder: Path) -> bool:
    return any(
        NAME.fullmatch(audio.stem)
        for word in visible_folders(folder)
        for audio in visible_files(word, ".wav")[:1]
    )
