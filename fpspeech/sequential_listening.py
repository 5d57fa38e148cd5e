"""Pruning in sequential order for a speaker: the recordings are run anew for every stage.

As in `listening`, no transcript is read and no gradient is taken, and recordings that cannot be
used are skipped. What stays in memory from one stage to the next is the account of the recordings
and the few tokens that a Whisper wrote for each window; samples are read from disk again.

Finished stages are saved, so that an interrupted run goes on behind the last of them, to the same
bits: the stage that was interrupted starts anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fpspeech.corpora import UnusableAudio, Utterance, fingerprint, is_silent
from fpspeech.listening import (
    Heard,
    Interrupted,
    Listener,
    require_something_heard,
    usable_windows,
    window_batches,
)
from fpspeech.models import SpeechModel
from fpspeech.pruning import (
    InputStatistics,
    PrunableLayer,
    PrunedLayers,
    PruningConfig,
    PruningError,
    Replay,
    SequentialPruner,
    Stage,
    evaluation_mode,
    execution_stages,
    pack,
    unpack,
)
from fpspeech.pruning.sequential import with_first

_FORMAT = 1


class RecordingsChangedError(ValueError):
    """The recordings are not the same as in the stage before."""


@dataclass(frozen=True)
class HeardInStages:
    """What pruning in sequential order came to.

    heard: of the speaker, as after a single pass; it holds no statistics. stages: how many there
    were; the recordings ran once through the first, and twice, up to its last layer, through each
    other one where the kept weights are updated.
    """

    heard: Heard
    pruned: PrunedLayers
    stages: int


def prune_while_listening(
    model: SpeechModel,
    layers: Sequence[PrunableLayer],
    utterances: Sequence[Utterance],
    config: PruningConfig,
    *,
    window_seconds: float | None = None,
    batch_size: int = 1,
    checkpoint: Path | None = None,
    listener: Listener | None = None,
    generic: Mapping[str, InputStatistics] | None = None,
    variant: str = "",
) -> HeardInStages:
    """Prunes `layers` stage by stage, streaming every recording through the model for each.

    The model is left as it was. window_seconds, batch_size, listener: as in `listen`; seconds are
    reported as shares of the stages, so that they add up to the audio once. checkpoint: a file that
    keeps the finished stages. generic: see `prune_layers`. variant: as in `listen`. Raises
    NothingHeardError, Interrupted after `listener.stop()`, RecordingsChangedError or PruningError.
    """
    recordings = _Recordings(
        model,
        utterances,
        min(window_seconds or model.window_seconds, model.window_seconds),
        batch_size,
        listener or Listener(),
    )
    stream = recordings.replays()
    first = next(stream)  # raises NothingHeardError where there is none
    with evaluation_mode(model.network):
        stages = execution_stages(layers, first)
    kept = None
    if checkpoint is not None:
        facts = (recordings.window_seconds, batch_size, _digest(generic), variant)
        kept = _Checkpoint(checkpoint, _key(model, stages, config, facts), utterances, layers)
    done, finished = kept.resume() if kept is not None else (0, None)
    pruner = SequentialPruner(model.network, layers, config, finished, generic)
    stream = with_first(first, stream)
    del first
    recordings.stages = len(stages) - done
    for number, stage in enumerate(stages[done:], start=done + 1):
        recordings.where = f"in stage {number} of {len(stages)}"
        pruner.prune(stage, stream)
        if kept is not None and number < len(stages):
            kept.save(number, pruner.pruned, recordings.account)
        stream = recordings.replays()
    return HeardInStages(recordings.account, pruner.pruned, len(stages))


class _Recordings:
    """A speaker's recordings as passes through the model, read again for every stage.

    stages: passes over all of them that are to come. where: what an interruption says.
    """

    def __init__(
        self,
        model: SpeechModel,
        utterances: Sequence[Utterance],
        window_seconds: float,
        batch_size: int,
        listener: Listener,
    ):
        self.window_seconds = window_seconds
        self.stages = 1
        self.where = "before the first stage"
        self._model = model
        self._utterances = utterances
        self._batch_size = batch_size
        self._listener = listener
        self._remembered: dict[int, object] = {}  # by the number of the batch
        self._account: Heard | None = None

    @property
    def account(self) -> Heard:
        """What was heard and skipped, once all recordings have run."""
        assert self._account is not None
        return self._account

    def replays(self) -> Iterator[Replay]:
        """The passes over all recordings, one batch of windows in memory at a time."""
        heard = Heard()
        listener = self._listener if self._account is None else Listener()  # a line a skip, once
        windows = usable_windows(
            self._utterances,
            heard,
            listener,
            sampling_rate=self._model.sampling_rate,
            window_seconds=self.window_seconds,
        )
        for number, batch in enumerate(window_batches(windows, self._batch_size)):
            sounding = [window for window in batch if not is_silent(window.samples)]
            if sounding:
                samples = [window.samples for window in sounding]
                if number not in self._remembered:
                    self._remembered[number] = self._model.remember(samples)
                yield from self._model.replays(samples, self._remembered[number])
            counted = sum(window.seconds for window in sounding)
            seconds = sum(window.seconds for window in batch)
            heard.seconds += counted
            heard.silent_seconds += seconds - counted
            self._listener.heard(seconds / self.stages)
            if self._listener.stop():
                raise Interrupted(f"stopped {self.where}")
        if self._account is None:
            require_something_heard(heard, self._utterances)
            self._account = heard
        elif heard != self._account:
            raise RecordingsChangedError(
                f"the recordings are not what they were when the first stage heard them: then "
                f"{_summary(self._account)}, now {_summary(heard)}; leave them alone while they "
                "are listened to, and run the same command again"
            )


def _summary(heard: Heard) -> str:
    return (
        f"{heard.seconds:.1f} s of {len(heard.fingerprints)} recordings "
        f"({len(heard.skipped)} skipped)"
    )


class _Checkpoint:
    """The finished stages of a run in a file, with what tells it from other runs."""

    def __init__(
        self,
        path: Path,
        key: str,
        utterances: Sequence[Utterance],
        layers: Sequence[PrunableLayer],
    ):
        self._path = path
        self._key = key
        self._utterances = utterances
        self._shapes = {layer.name: layer.shape for layer in layers}

    def resume(self) -> tuple[int, PrunedLayers | None]:
        """Stages that are done and what they came to, where the file belongs to this very run."""
        if not self._path.is_file():
            return 0, None
        try:
            with safe_open(self._path, "pt") as file:
                saved = json.loads((file.metadata() or {}).get("stages", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if saved.get("key") != self._key or saved["recordings"] != self._fingerprints(
                saved["recordings"]
            ):
                return 0, None
            pruned = PrunedLayers({}, {}, {})
            for name, tensor in tensors.items():
                what, _, owner = name.partition(":")
                if what == "mask":
                    pruned.masks[owner] = unpack(tensor, self._shapes[owner])
                elif what == "kept":
                    pruned.kept[owner] = tensor
                else:
                    pruned.values[owner] = tensor
        except (SafetensorError, PruningError, KeyError, ValueError, OSError):
            return 0, None  # half a file or none of ours: start anew, it is overwritten
        return int(saved["done"]), pruned

    def save(self, done: int, pruned: PrunedLayers, heard: Heard) -> None:
        """Writes what the first `done` stages came to."""
        tensors = {f"mask:{name}": pack(mask) for name, mask in pruned.masks.items()}
        tensors |= {f"kept:{name}": kept.contiguous() for name, kept in pruned.kept.items()}
        tensors |= {f"value:{name}": value.contiguous() for name, value in pruned.values.items()}
        skipped = {each.id: None for each in heard.skipped}
        facts = {"key": self._key, "done": done, "recordings": {**heard.fingerprints, **skipped}}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(self._path.name + ".draft")
        save_file(tensors, draft, metadata={"stages": json.dumps(facts)})
        os.replace(draft, self._path)

    def _fingerprints(self, saved: Mapping[str, str | None]) -> dict[str, str | None]:
        """The recordings as they are now; those that were skipped then are not looked at."""
        found: dict[str, str | None] = {}
        for utterance in self._utterances:
            known = saved.get(utterance.id)
            try:
                found[utterance.id] = known and fingerprint(utterance.audio)
            except UnusableAudio:
                found[utterance.id] = "unusable"
        return found


def _key(
    model: SpeechModel, stages: Sequence[Stage], config: PruningConfig, facts: Sequence[object]
) -> str:
    layers = [[(layer.name, layer.shape) for layer in stage.layers] for stage in stages]
    everything = [_FORMAT, model.source.sha256, asdict(config), *facts, layers]
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()


def _digest(generic: Mapping[str, InputStatistics] | None) -> list[tuple[str, int, float]]:
    return [
        (name, found.count, float(found.absolute.sum())) for name, found in (generic or {}).items()
    ]
