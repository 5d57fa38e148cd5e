"""Streaming a speaker's recordings through a model once: statistics, and what was skipped.

Nothing here reads a transcript, and no gradient is taken. The statistics so far are saved now
and then, so that an interrupted run goes on where it stopped, to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fpspeech.corpora import UnusableAudio, Utterance, inspect_recording, is_silent, read_windows
from fpspeech.models import SpeechModel
from fpspeech.pruning import InputStatistics, Observer, PrunableLayer
from fpspeech.pruning.statistics import from_tensors, to_tensors

MOST_SECONDS = 600.0  # of audio that is kept in memory to tune something on
CHECKPOINT_SECONDS = 30.0  # s of wall time between two saves of the statistics
_FORMAT = 2


class NothingHeardError(ValueError):
    """No recording of the speaker could be used."""


class Interrupted(Exception):
    """The run was asked to stop; what it had counted of recordings is saved."""


@dataclass(frozen=True)
class Skipped:
    """A recording that was not used, and why."""

    id: str
    reason: str


@dataclass
class Heard:
    """What was heard of a speaker so far.

    statistics: of every layer's input. seconds: of audio counted; silent_seconds: of windows
    left out because they are silent. fingerprints: SHA-256 of each recording's file, by id.
    """

    statistics: dict[str, InputStatistics] = field(default_factory=dict, repr=False)
    seconds: float = 0.0
    silent_seconds: float = 0.0
    fingerprints: dict[str, str] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def skipped_by_reason(self) -> dict[str, int]:
        """How many recordings were skipped for each reason."""
        return dict(Counter(skipped.reason for skipped in self.skipped))


@dataclass(frozen=True)
class Listener:
    """What to call while listening.

    heard: with the seconds of audio of each window that is done. skipped: with each recording
    that cannot be used, and the full message. stop: asked between windows; True ends the run.
    tuned: with what is tuned before pruning, each step of it that is done, and how many there are.
    """

    heard: Callable[[float], None] = lambda seconds: None
    skipped: Callable[[Skipped, str], None] = lambda skipped, message: None
    stop: Callable[[], bool] = lambda: False
    tuned: Callable[[str, int, int], None] = lambda what, step, steps: None


def listen(
    model: SpeechModel,
    layers: Sequence[PrunableLayer],
    utterances: Sequence[Utterance],
    *,
    products: frozenset[str] = frozenset(),
    product_stride: int = 1,
    window_seconds: float | None = None,
    batch_size: int = 1,
    checkpoint: Path | None = None,
    listener: Listener | None = None,
    variant: str = "",
) -> Heard:
    """Streams every recording through the model once and counts what the layers take in.

    Memory does not grow with the amount of audio. Recordings that cannot be used are skipped
    and listed; windows of silence inside long ones are left out. products: names of the layers
    whose Σxxᵀ is counted too, at every product_stride-th position. checkpoint: a file that keeps
    the statistics so far; when it is there and fits, the run goes on from it. variant: what tells
    the model, as it is now, from its checkpoint.
    Raises NothingHeardError when nothing is left, Interrupted after `listener.stop()`.
    """
    listener = listener or Listener()
    window_seconds = min(window_seconds or model.window_seconds, model.window_seconds)
    observer = Observer(layers, products, product_stride)
    facts = (sorted(products), product_stride, window_seconds, batch_size, variant)
    run = _Run(model, observer, listener, checkpoint, _key(model, layers, facts))
    run.resume(utterances)
    for batch in window_batches(run.windows(utterances, window_seconds), batch_size):
        run.count(batch)
    require_something_heard(run.heard, utterances)
    run.heard.statistics = run.observer.statistics()
    return run.heard


@dataclass(frozen=True)
class Window:
    """A piece of a recording. seconds: its length. number: in the recording, counted from 1."""

    samples: Tensor
    seconds: float
    number: int
    utterance: Utterance


def usable_windows(
    utterances: Sequence[Utterance],
    heard: Heard,
    listener: Listener,
    *,
    sampling_rate: int,
    window_seconds: float,
    done: Mapping[str, int] | None = None,
) -> Iterator[Window]:
    """The windows of recordings that can be used, in order; `heard` keeps account of the others.

    done: by utterance id, how many of its windows are left out, for a run that goes on.
    """

    def skip(utterance: Utterance, reason: str, message: str) -> None:
        heard.skipped.append(Skipped(utterance.id, reason))
        listener.skipped(heard.skipped[-1], message)

    seen_files = {sha: name for name, sha in heard.fingerprints.items()}
    skipped = {each.id for each in heard.skipped}
    for utterance in utterances:
        if utterance.id in skipped:
            continue
        try:
            recording = inspect_recording(utterance.audio)
        except UnusableAudio as error:
            skip(utterance, error.reason, str(error))
            continue
        other = seen_files.setdefault(recording.sha256, utterance.id)
        if other != utterance.id:
            message = f"{utterance.audio} is the same recording as {other}: counted once"
            skip(utterance, "same recording twice", message)
            continue
        heard.fingerprints[utterance.id] = recording.sha256
        cuts = read_windows(recording, sampling_rate=sampling_rate, window_seconds=window_seconds)
        for number, samples in enumerate(cuts, start=1):
            if done is not None and number <= done.get(utterance.id, 0):
                continue
            yield Window(samples, samples.numel() / sampling_rate, number, utterance)


def window_batches(windows: Iterator[Window], size: int) -> Iterator[list[Window]]:
    """Windows by the batch."""
    batch: list[Window] = []
    for window in windows:
        batch.append(window)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def require_something_heard(heard: Heard, utterances: Sequence[Utterance]) -> None:
    """Raises NothingHeardError, with the reasons, when no window could be used."""
    if heard.seconds == 0:
        reasons = ", ".join(f"{n} {reason}" for reason, n in heard.skipped_by_reason.items())
        raise NothingHeardError(
            f"nothing to listen to: of {len(utterances)} recordings none can be used"
            + (f" ({reasons})" if reasons else "")
            + "; expected recordings of speech in WAV, FLAC, OGG or MP3"
        )


@dataclass(frozen=True)
class WindowStream:
    """The sounding windows of recordings, read from their files anew every time they are wanted.

    Iterating gives float32 samples, shape (samples,). Recordings that cannot be used are left
    out; `listen` and the listener say which, and why.
    """

    model: SpeechModel
    utterances: Sequence[Utterance]
    window_seconds: float | None = None

    def __iter__(self) -> Iterator[Tensor]:
        longest = self.model.window_seconds
        windows = usable_windows(
            self.utterances,
            Heard(),
            Listener(),
            sampling_rate=self.model.sampling_rate,
            window_seconds=min(self.window_seconds or longest, longest),
        )
        for window in windows:
            if not is_silent(window.samples):
                yield window.samples


def first_seconds(windows: Iterable[Tensor], seconds: float, sampling_rate: int) -> list[Tensor]:
    """Windows, in order, until so much audio is together; the one that crosses it is in.

    windows: samples, shape (samples,), or batches of windows of one length, (windows, samples).
    """
    found: list[Tensor] = []
    left = seconds * sampling_rate
    for window in windows:
        if left <= 0:
            break
        found.append(window)
        left -= window.numel()
    return found


class _Run:
    """One pass over the recordings: where it is, and what was heard up to there."""

    def __init__(
        self,
        model: SpeechModel,
        observer: Observer,
        listener: Listener,
        checkpoint: Path | None,
        key: str,
    ):
        self.model = model
        self.observer = observer
        self.listener = listener
        self.checkpoint = checkpoint
        self.key = key
        self.heard = Heard()
        self._windows_done: dict[str, int] = {}  # by utterance id; the last one may be partial
        self._saved_at = time.monotonic()

    def windows(self, utterances: Sequence[Utterance], window_seconds: float) -> Iterator[Window]:
        """The windows still to be counted, in order."""
        return usable_windows(
            utterances,
            self.heard,
            self.listener,
            sampling_rate=self.model.sampling_rate,
            window_seconds=window_seconds,
            done=self._windows_done,
        )

    def count(self, batch: Sequence[Window]) -> None:
        """Counts a batch of windows, then saves or stops where that is due."""
        sounding = [window for window in batch if not is_silent(window.samples)]
        if sounding:
            self.model.observe([window.samples for window in sounding], self.observer)
        for window in batch:
            self._windows_done[window.utterance.id] = window.number
            self.listener.heard(window.seconds)
        counted = sum(window.seconds for window in sounding)
        self.heard.seconds += counted
        self.heard.silent_seconds += sum(window.seconds for window in batch) - counted
        stop = self.listener.stop()
        if self.checkpoint is not None and (
            stop or time.monotonic() - self._saved_at > CHECKPOINT_SECONDS
        ):
            self._save(self.checkpoint)
        if stop:
            raise Interrupted(f"stopped after {self.heard.seconds / 60:.1f} minutes of audio")

    def resume(self, utterances: Sequence[Utterance]) -> None:
        """Goes on from the checkpoint where it is there and belongs to this very run."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return
        try:
            with safe_open(self.checkpoint, "pt") as file:
                saved = json.loads((file.metadata() or {}).get("progress", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError, OSError):
            return  # half a file or none of ours: start anew, it is overwritten
        known = {utterance.id for utterance in utterances}
        if saved.get("key") != self.key or not set(saved["windows_done"]) <= known:
            return
        self.observer.resume(from_tensors(tensors))
        self._windows_done = saved["windows_done"]
        self.heard = Heard(
            seconds=saved["seconds"],
            silent_seconds=saved["silent_seconds"],
            fingerprints=saved["fingerprints"],
            skipped=[Skipped(**each) for each in saved["skipped"]],
        )
        self.listener.heard(self.heard.seconds + self.heard.silent_seconds)

    def _save(self, path: Path) -> None:
        progress = {
            "key": self.key,
            "windows_done": self._windows_done,
            "seconds": self.heard.seconds,
            "silent_seconds": self.heard.silent_seconds,
            "fingerprints": {
                name: sha
                for name, sha in self.heard.fingerprints.items()
                if name in self._windows_done
            },
            "skipped": [asdict(skipped) for skipped in self.heard.skipped],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".draft")
        tensors = to_tensors(self.observer.statistics())
        save_file(tensors, draft, metadata={"progress": json.dumps(progress)})
        os.replace(draft, path)
        self._saved_at = time.monotonic()


def _key(model: SpeechModel, layers: Sequence[PrunableLayer], settings: Sequence[object]) -> str:
    """What the statistics depend on besides the recordings."""
    facts = [_FORMAT, model.source.sha256, *settings]
    facts += [(layer.name, layer.shape) for layer in layers]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
