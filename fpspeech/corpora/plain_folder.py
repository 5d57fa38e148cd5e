"""A plain folder: one person's recordings, or a folder a person, with or without transcripts."""

from __future__ import annotations

from pathlib import Path, PurePath

from fpspeech.corpora.apart import apart_by_group
from fpspeech.corpora.layout import CorpusNotFound, corpus_utterances
from fpspeech.corpora.manifest import read_utterances
from fpspeech.corpora.split import hold_out
from fpspeech.corpora.utterance import ManifestError, Utterance


def find_folder_of_recordings(data_dir: str | Path | None = None) -> Path:
    """Return the folder, which has to be named; raises ``CorpusNotFound``."""
    if data_dir is None or not Path(data_dir).is_dir():
        found = "none given" if data_dir is None else f"none at {data_dir}"
        raise CorpusNotFound(
            f"folder: expected a folder of recordings, found {found}; say where it is"
        )
    return Path(data_dir)


def prepare_folder(
    root: str | Path, *, seed: int = 0, test_share: float = 0.5, speaker: str | None = None
) -> list[Utterance]:
    """Read a folder as `read_utterances` does, with texts, and split each speaker; sorted by id.

    Folders called ``adapt`` and ``test``, or the splits of a manifest, are kept. Otherwise a
    speaker's subfolders are taken for sessions and are on one side as a whole (`split_groups`), and
    a speaker without several subfolders is split by id (`hold_out`). Raises ``ManifestError``, also
    where only some of a speaker's recordings have a split.
    """
    root = Path(root)
    by_speaker: dict[str, list[Utterance]] = {}
    for utterance in read_utterances(root, with_text=True, speaker=speaker):
        by_speaker.setdefault(utterance.speaker, []).append(utterance)
    done: list[Utterance] = []
    for name, own in by_speaker.items():
        given = [each for each in own if each.split is not None]
        if given and len(given) < len(own):
            loose = next(each for each in own if each.split is None)
            raise ManifestError(
                f"{loose.audio}: expected all recordings of {name} to be in adapt or test, or "
                f"none, found {len(own) - len(given)} of {len(own)} in neither; move or remove them"
            )
        done += own if given else _split(own, test_share, seed)
    return corpus_utterances(root, ((each, each.audio) for each in done))


def _split(own: list[Utterance], test_share: float, seed: int) -> list[Utterance]:
    if len({_session(each) for each in own}) > 1:
        return apart_by_group(own, _session, test_share, seed)
    kept, held_out = hold_out(own, test_share, seed)
    return [
        Utterance(each.id, each.audio, each.speaker, each.text, split)
        for part, split in ((kept, "adapt"), (held_out, "test"))
        for each in part
    ]


def _session(utterance: Utterance) -> str:
    return PurePath(utterance.id).parent.as_posix()
