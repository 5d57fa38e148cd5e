"""Speech datasets of the Hugging Face Hub as a corpus like the others: find, download, prepare.

To download is to stream: rows are taken until the limits are met, and only these are written, to
``hub/DATASET-...`` below the target, a folder that no other settings share. A preset names the
dataset, the split and the columns of a corpus that the Hub has; every option overrules it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fpspeech.corpora.hub import PARQUET
from fpspeech.corpora.hub_audio import (
    MANIFEST,
    SESSIONS,
    AudioDataset,
    save_hub_audio,
    split_hub_audio,
)
from fpspeech.corpora.layout import corpus_utterances, find_folder
from fpspeech.corpora.manifest import read_utterances
from fpspeech.corpora.utterance import ManifestError, Utterance

NO_COLUMN = "none"


@dataclass(frozen=True)
class HubOptions:
    """What to stream, and how much of it.

    ``preset``: a name of `PRESETS`. ``dataset``, ``name``, ``folder``, ``split`` and ``revision``
    are `path`, `name`, `data_dir`, `split` and `revision` of `datasets.load_dataset`; a preset
    takes ``name`` for the folder of the dataset's Parquet copy. ``audio``, ``speaker``, ``text``
    and ``session``: names of columns, "none" where there is none. ``max_utterances``,
    ``max_seconds``, ``max_speaker_utterances``: see `save_hub_audio`.
    """

    preset: str | None = None
    dataset: str | None = None
    name: str | None = None
    folder: str | None = None
    split: str | None = None
    revision: str | None = None
    audio: str = "audio"
    speaker: str = "speaker_id"
    text: str = "text"
    session: str = NO_COLUMN
    max_utterances: int | None = None
    max_seconds: float | None = None
    max_speaker_utterances: int | None = None

    @classmethod
    def of(cls, options: dict[str, Any]) -> HubOptions:
        """Fill in a preset; raises ``ManifestError`` where it is not known or not enough is said.

        ``options``: as given, by name.
        """
        preset = options.get("preset")
        if preset is not None and preset not in PRESETS:
            near = difflib.get_close_matches(str(preset), PRESETS, n=1, cutoff=0.0)
            raise ManifestError(
                f"hub: expected a preset among {', '.join(PRESETS)}, found {preset!r}; the "
                f"nearest is {near[0]!r}"
            )
        found = cls(**({**PRESETS[preset], **options} if preset is not None else options))
        if preset is not None and "dataset" not in options and "folder" not in options:
            if found.name is None:
                raise ManifestError(
                    f"hub: expected the option name, the language of {preset} as the dataset "
                    f"{found.dataset} calls it (such as de_de or de), found none"
                )
            found = replace(found, name=None, folder=found.name, revision=found.revision or PARQUET)
        if found.dataset is None or found.split is None:
            raise ManifestError(
                "hub: expected the options dataset and split (such as dataset=openslr/"
                f"librispeech_asr, split=test), or a preset ({', '.join(PRESETS)}), found "
                f"{', '.join(sorted(options)) or 'none'}"
            )
        return found

    def open(self) -> AudioDataset:
        """Return the dataset."""
        assert self.dataset is not None
        assert self.split is not None
        return AudioDataset(
            self.dataset,
            self.split,
            self.name,
            self.folder,
            self.revision,
            self.audio,
            _column(self.speaker),
            _column(self.text),
            _column(self.session),
        )

    @property
    def folder_name(self) -> str:
        """Return a name that tells the dataset, and by a hash all that is said of it."""
        said = [self.dataset, self.name, self.folder, self.split]
        plain = re.sub(r"[^A-Za-z0-9_]+", "-", "-".join(each for each in said if each)).strip("-")
        everything = json.dumps({**asdict(self), "preset": None}).encode()
        return f"{plain}-{hashlib.sha256(everything).hexdigest()[:8]}"


def _column(name: str) -> str | None:
    return None if name == NO_COLUMN else name


PRESETS: dict[str, dict[str, Any]] = {
    "librispeech": {
        "dataset": "openslr/librispeech_asr",
        "name": "other",
        "split": "test",
        "session": "chapter_id",
    },
    "common_voice": {
        "dataset": "mozilla-foundation/common_voice_17_0",
        "split": "train",  # where a speaker has many clips
        "speaker": "client_id",
        "text": "sentence",
    },
    "voxpopuli": {"dataset": "facebook/voxpopuli", "split": "test", "text": "normalized_text"},
    "fleurs": {
        "dataset": "google/fleurs",
        "split": "test",
        "speaker": NO_COLUMN,  # the dataset does not tell them apart
        "text": "transcription",
    },
    "speech_commands": {
        "dataset": "google/speech_commands",
        "name": "v0.02",
        "split": "test",
        "text": "label",
    },
}
"""Corpora of the Hub. What is not said here is as in `HubOptions`."""


def find_hub(data_dir: str | Path | None = None, **options: Any) -> Path:
    """Return the folder that was streamed to; raises ``CorpusNotFound``. Options: `HubOptions`."""
    wanted = HubOptions.of(options)
    return find_folder(
        "Hugging Face Hub",
        data_dir,
        (f"hub/{wanted.folder_name}",),
        lambda folder: folder.name == wanted.folder_name and (folder / MANIFEST).is_file(),
        f"{wanted.dataset}, streamed with these options",
        "stream it with `fpspeech prepare hub --download DIR`, or with `download: true` in a "
        "recipe",
    )


def download_hub(target: str | Path, **options: Any) -> Path:
    """Stream the rows to ``target/hub/DATASET-...``; returns that folder. Options: `HubOptions`.

    What is already there is not streamed again. Raises ``ManifestError``.
    """
    wanted = HubOptions.of(options)
    root = Path(target) / "hub" / wanted.folder_name
    if not (root / MANIFEST).is_file():
        save_hub_audio(
            wanted.open(),
            root,
            max_utterances=wanted.max_utterances,
            max_seconds=wanted.max_seconds,
            max_speaker_utterances=wanted.max_speaker_utterances,
        )
    return root


def prepare_hub(root: str | Path, *, seed: int = 0, test_share: float = 0.5) -> list[Utterance]:
    """Read what was streamed, split as `split_hub_audio` says, sorted by id.

    Raises ``ManifestError``.
    """
    root = Path(root)
    sessions = json.loads((root / SESSIONS).read_text(encoding="utf-8"))
    found = read_utterances(root / MANIFEST, with_text=True)
    split = split_hub_audio(found, sessions, test_share, seed)
    return corpus_utterances(root, ((each, root / MANIFEST) for each in split))
