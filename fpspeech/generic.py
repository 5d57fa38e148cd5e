"""Generic numbers of a base model: what its features and inputs are like for other people.

A file of numbers that one command makes (`fpspeech generic`), from recordings of anybody but the
user and the test speakers: moments of the features at the model's sites, and sums over the inputs
of its layers. It holds no audio, no transcript, no name and no path.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fpspeech.corpora import Utterance, is_silent
from fpspeech.listening import Heard, Interrupted, Listener, require_something_heard, usable_windows
from fpspeech.models import SpeechModel
from fpspeech.pruning import (
    FeatureMoments,
    FeatureObserver,
    InputStatistics,
    Observer,
    PrunableLayer,
    PruningError,
)
from fpspeech.pruning.statistics import Valid, from_tensors, to_tensors

FORMAT = 1
BESIDE_MODEL = "generic.safetensors"  # where a base model's folder may have it
_MEAN, _COVARIANCE, _LAYER = "mean:", "covariance:", "layer:"


class GenericError(ValueError):
    """Generic numbers that cannot be read, or belong to another base model."""


@dataclass(frozen=True)
class Generic:
    """Numbers of other people for one base model.

    base: SHA-256 of its weights. moments: of the features, by the name of the site's module.
    statistics: of the layers' inputs, by layer name. seconds, speakers: what they were made from.
    """

    base: str
    moments: Mapping[str, FeatureMoments] = field(repr=False)
    statistics: Mapping[str, InputStatistics] = field(repr=False)
    seconds: float
    speakers: int

    def save(self, path: Path) -> None:
        """Writes the file; it appears whole or not at all."""
        facts: dict[str, Any] = {
            "format": FORMAT,
            "base": self.base,
            "seconds": round(self.seconds, 3),
            "speakers": self.speakers,
            "counts": {name: each.count for name, each in self.moments.items()},
        }
        tensors: dict[str, Tensor] = {}
        for name, each in self.moments.items():
            tensors[f"{_MEAN}{name}"] = each.mean
            tensors[f"{_COVARIANCE}{name}"] = each.covariance.float()
        for key, tensor in to_tensors(self.statistics).items():
            tensors[f"{_LAYER}{key}"] = tensor
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        save_file(tensors, draft, metadata={"fpspeech": json.dumps(facts)})
        os.replace(draft, path)

    @classmethod
    def load(cls, path: Path) -> Generic:
        """Reads the file; raises GenericError, naming it, when it cannot."""
        if not path.is_file():
            raise GenericError(
                f"{path} does not exist: expected generic numbers, as `fpspeech generic` writes "
                "them from recordings of other people"
            )
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})["fpspeech"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if facts["format"] != FORMAT:
                raise GenericError(
                    f"{path} is of format {facts['format']!r}, this version reads {FORMAT}: make "
                    "it again with `fpspeech generic`"
                )
            return cls(
                base=facts["base"],
                moments={
                    name: FeatureMoments(
                        count, tensors[f"{_MEAN}{name}"], tensors[f"{_COVARIANCE}{name}"].double()
                    )
                    for name, count in facts["counts"].items()
                },
                statistics=from_tensors(
                    {
                        name.removeprefix(_LAYER): tensor
                        for name, tensor in tensors.items()
                        if name.startswith(_LAYER)
                    }
                ),
                seconds=facts["seconds"],
                speakers=facts["speakers"],
            )
        except (
            SafetensorError,
            KeyError,
            TypeError,
            AttributeError,
            OSError,
            json.JSONDecodeError,
            PruningError,
        ) as error:
            raise GenericError(
                f"{path} holds no generic numbers that can be read ({error}): make it with "
                "`fpspeech generic`"
            ) from error

    def check(self, model: SpeechModel) -> None:
        """Raises GenericError when these are the numbers of another base model."""
        if model.source.sha256 != self.base:
            raise GenericError(
                f"these generic numbers belong to a base with SHA-256 {self.base[:12]}..., found "
                f"{model.source.id} ({model.source.sha256[:12]}...): make them for this model with "
                "`fpspeech generic`"
            )


def find_generic(model: SpeechModel, path: Path | None) -> Generic | None:
    """The file given, else the one beside the base model's weights, else None.

    Raises GenericError when it cannot be read or belongs to another base.
    """
    if path is None:
        path = model.source.folder / BESIDE_MODEL
        if not path.is_file():
            return None
    generic = Generic.load(path)
    generic.check(model)
    return generic


def measure_generic(
    model: SpeechModel,
    utterances: Sequence[Utterance],
    layers: Sequence[PrunableLayer] = (),
    *,
    products: frozenset[str] = frozenset(),
    product_stride: int = 1,
    listener: Listener | None = None,
) -> Generic:
    """Streams other people's recordings through the model once; transcripts are never read.

    layers, products, product_stride: whose inputs are counted too, see `Observer`. A file with
    products holds a matrix a layer, and can outweigh the model.
    Raises NothingHeardError when no recording can be used, Interrupted after `listener.stop()`.
    """
    sites = [site for group in model.sites.values() for site in group]
    features = FeatureObserver(model.network, sites)
    observer = Observer(layers, products, product_stride)
    listener = listener or Listener()
    heard = Heard()
    speakers: set[str] = set()
    for window in usable_windows(
        utterances,
        heard,
        listener,
        sampling_rate=model.sampling_rate,
        window_seconds=model.window_seconds,
    ):
        if not is_silent(window.samples):
            if layers:
                model.observe([window.samples], _Both(features, observer))
            else:
                model.listen([window.samples], features)
            heard.seconds += window.seconds
            speakers.add(window.utterance.speaker)
        listener.heard(window.seconds)
        if listener.stop():
            raise Interrupted(f"stopped after {heard.seconds / 60:.1f} minutes of audio")
    require_something_heard(heard, utterances)
    return Generic(
        base=model.source.sha256,
        moments=features.moments(),
        statistics=observer.statistics(),
        seconds=heard.seconds,
        speakers=len(speakers),
    )


def in_turns(utterances: Sequence[Utterance], seed: int = 0) -> list[Utterance]:
    """One recording of each speaker in turn, each speaker's in an order drawn from the seed."""
    by_speaker: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_speaker.setdefault(utterance.speaker, []).append(utterance)
    for speaker, mine in by_speaker.items():
        random.Random(f"{seed}:{speaker}").shuffle(mine)
    turns = zip_longest(*(by_speaker[speaker] for speaker in sorted(by_speaker)))
    return [utterance for turn in turns for utterance in turn if utterance is not None]


class _Both:
    """Counts features and inputs in the same pass."""

    def __init__(self, features: FeatureObserver, observer: Observer):
        self._features = features
        self._observer = observer

    @contextmanager
    def counting(self, valid: Valid | None = None) -> Iterator[None]:
        with self._features.counting(valid), self._observer.counting(valid):
            yield
