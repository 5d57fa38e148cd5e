"""TORGO: English by people with dysarthria (cerebral palsy or ALS) and by controls.

As published: ``SPEAKER/SessionN/wav_headMic/0001.wav`` (also ``wav_arrayMic``) and
``SPEAKER/SessionN/prompts/0001.txt``, where archives may leave folders like ``F`` or ``MC`` around
the speakers. Speakers are F01, M01 and so on, controls FC01, MC01. Many prompts have no recording
and the reverse; that is known, counted and skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fpspeech.corpora.apart import apart_by_group, prompt_words
from fpspeech.corpora.layout import (
    corpus_utterances,
    find_folder,
    read_prompt,
    visible_files,
    visible_folders,
    warn_skipped,
)
from fpspeech.corpora.utterance import Utterance

PAGE = "https://www.cs.toronto.edu/~complingweb/data/TORGO/torgo.html"
FOLDER_NAMES = ("TORGO", "torgo")
SPEAKER = re.compile(r"[FM]C?\d{2}")
SESSION = re.compile(r"Session\w+")
MICROPHONES = ("head", "array")

NOT_WORDS = re.compile(r"[\[\]/\\]|\.jpe?g|\bxxx\b", re.IGNORECASE)
"""Of a prompt: an instruction in brackets, the name of a picture to describe, or xxx (unusable)."""


@dataclass
class _Skipped:
    no_words: list[Path] = field(default_factory=list)
    unrecorded: list[Path] = field(default_factory=list)
    unprompted: list[Path] = field(default_factory=list)


def find_torgo(data_dir: str | Path | None = None) -> Path:
    """Return the folder that holds the speakers; raises ``CorpusNotFound``."""
    return find_folder(
        "TORGO",
        data_dir,
        FOLDER_NAMES,
        lambda folder: next(_sessions(folder), None) is not None,
        "folders like F01/Session1 with prompts",
        f"read the terms at {PAGE}, download the archives there (or LDC2012S02 from the LDC) and "
        "unpack them",
    )


def prepare_torgo(
    root: str | Path,
    *,
    seed: int = 0,
    test_share: float = 0.5,
    microphone: str = "head",
    shared_prompts: bool = False,
) -> list[Utterance]:
    """Read the recordings of one microphone ("head" or "array"), split by session, sorted by id.

    A speaker with several sessions has whole sessions on either side (`split_groups`). What the
    speaker adapts on and also says in a test session is left out of adaptation, since sessions
    repeat prompts, unless ``shared_prompts``. A speaker with one session is split by prompt. Both
    go by the words of the prompt. Skipped, with a count in the log: prompts in brackets, prompts
    that name a picture, ``xxx``, empty ones, and prompts and recordings without the other. An id is
    ``SPEAKER-SESSION-NUMBER``. Raises ``ManifestError``, and ``ValueError`` for another microphone.
    """
    if microphone not in MICROPHONES:
        raise ValueError(
            f"microphone: expected one of {', '.join(MICROPHONES)}, found {microphone!r}"
        )
    root = Path(root)
    skipped = _Skipped()
    sessions: dict[str, str] = {}
    where: dict[str, Path] = {}
    by_speaker: dict[str, list[Utterance]] = {}
    for speaker, session in _sessions(root):
        for utterance, prompt in _session(speaker, session, f"wav_{microphone}Mic", skipped):
            sessions[utterance.id] = session.name
            where[utterance.id] = prompt
            by_speaker.setdefault(speaker, []).append(utterance)
    warn_skipped("TORGO", "prompts of no words", skipped.no_words)
    warn_skipped("TORGO", f"prompts without a recording by the {microphone}", skipped.unrecorded)
    warn_skipped("TORGO", "recordings without a prompt", skipped.unprompted)
    done = []
    for speaker, own in by_speaker.items():
        if len({sessions[each.id] for each in own}) == 1:
            done += apart_by_group(own, _prompt_of, test_share, seed)
            continue
        split = apart_by_group(own, lambda each: sessions[each.id], test_share, seed)
        done += split if shared_prompts else _without_test_prompts(speaker, split)
    return corpus_utterances(root, ((each, where[each.id]) for each in done))


def _without_test_prompts(speaker: str, utterances: list[Utterance]) -> list[Utterance]:
    tested = {_prompt_of(each) for each in utterances if each.split == "test"}
    leaks = {e.id for e in utterances if e.split == "adapt" and _prompt_of(e) in tested}
    warn_skipped("TORGO", f"to adapt {speaker} on, but prompts of the test", sorted(leaks))
    return [each for each in utterances if each.id not in leaks]


def _prompt_of(utterance: Utterance) -> str:
    return prompt_words(utterance.text or "")


def _sessions(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield speaker and folder of each session, one or two levels below the root."""
    folders = visible_folders(root)
    for folder in folders:
        folders = [folder] if SPEAKER.fullmatch(folder.name) else visible_folders(folder)
        for speaker in folders:
            if SPEAKER.fullmatch(speaker.name):
                for session in visible_folders(speaker):
                    if SESSION.fullmatch(session.name) and (session / "prompts").is_dir():
                        yield speaker.name, session


def _session(
    speaker: str, session: Path, audio_folder: str, skipped: _Skipped
) -> Iterator[tuple[Utterance, Path]]:
    recordings = {each.stem: each for each in visible_files(session / audio_folder, ".wav")}
    for prompt in visible_files(session / "prompts", ".txt"):
        audio = recordings.pop(prompt.stem, None)
        text = read_prompt(prompt, fallback="cp1252")
        if NOT_WORDS.search(text) or not prompt_words(text):
            skipped.no_words.append(prompt)
        elif audio is None:
            skipped.unrecorded.append(prompt)
        else:
            identity = f"{speaker}-{session.name}-{prompt.stem}"
            yield Utterance(identity, audio, speaker, text), prompt
    skipped.unprompted += recordings.values()
