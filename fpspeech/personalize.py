"""The use case: a speaker's unlabeled recordings and a base model in, a personal model out."""

from __future__ import annotations

import platform
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from fpspeech.config import Config
from fpspeech.corpora import Utterance
from fpspeech.listening import Heard, Listener, listen
from fpspeech.models import PretrainedModel, SpeechModel
from fpspeech.personal import Base, Personal, Recordings
from fpspeech.pruning import (
    PruningConfig,
    PruningError,
    Selection,
    make_masks,
    products_for,
    select,
    sparsity_of,
    update_weights,
)


def personalize(
    model: SpeechModel,
    utterances: Sequence[Utterance],
    config: Config | None = None,
    *,
    checkpoint: Path | None = None,
    listener: Listener | None = None,
) -> Personal:
    """Streams a speaker's recordings through `model` once and prunes what contributes little.

    The model is left as it was; `Personal.apply` puts the result in force. Transcripts are never
    read. checkpoint: see `listen`. Raises NothingHeardError, Interrupted or PruningError.
    """
    config = config or Config()
    selection = select_layers_of(model, config)
    started = time.perf_counter()
    heard = listen(
        model,
        selection.layers,
        utterances,
        products=products_for(selection.layers, config.pruning),
        product_stride=config.pruning.product_stride,
        window_seconds=config.window_seconds,
        batch_size=config.batch_size,
        checkpoint=checkpoint,
        listener=listener,
    )
    listened = time.perf_counter() - started
    pruning = pruning_for(model, config)
    masks = make_masks(selection.layers, heard.statistics, pruning)
    kept = update_weights(selection.layers, masks, heard.statistics, pruning)
    took = {"listening": listened, "pruning": time.perf_counter() - started - listened}
    return Personal(
        base=Base.of(model),
        config=config,
        masks=masks,
        recordings=Recordings.of(heard.fingerprints.values()),
        seconds=heard.seconds,
        kept=kept,
        report=_report(model, selection, masks, kept, heard, took),
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("fpspeech", "torch", "transformers")},
        },
    )


def select_layers_of(model: PretrainedModel, config: Config) -> Selection:
    """The layers that `config` prunes in `model`, and the exclusions with their reasons."""
    exclude = dict(model.exclusions) if config.default_exclusions else {}
    exclude |= dict.fromkeys(config.exclude, "excluded by request")
    return select(model.network, config.pruning, exclude)


def pruning_for(model: PretrainedModel, config: Config) -> PruningConfig:
    """The pruning settings with the sparsities of named components written out as layer names.

    Raises PruningError when the model has no such component.
    """
    overrides: list[tuple[str, float]] = []
    for name, sparsity in config.components:
        if name not in model.components:
            raise PruningError(
                f"{model.source.id} has no component {name!r}: expected one of "
                f"{sorted(model.components)}"
            )
        overrides += [(pattern, sparsity) for pattern in model.components[name]]
    return replace(config.pruning, overrides=(*overrides, *config.pruning.overrides))


@dataclass(frozen=True)
class Plan:
    """What a personalization would do, without doing it.

    prunable, pruned, parameters: numbers of weights. artifact_bytes: expected size of the folder.
    """

    selection: Selection
    prunable: int
    parameters: int
    artifact_bytes: int


def plan(model: PretrainedModel, config: Config) -> Plan:
    """Lists the layers and sizes of a personalization, for a dry run."""
    selection = select_layers_of(model, config)
    pruning = pruning_for(model, config)
    packed = sum((layer.size + 7) // 8 for layer in selection.layers)
    updated = products_for(selection.layers, pruning)
    kept = sum(
        2 * round(layer.size * (1 - pruning.sparsity_for(layer.name)))  # float16
        for layer in selection.layers
        if layer.name in updated
    )
    # Names and shapes stand in the safetensors header, the settings and the report.
    names = sum(3 * len(layer.name) + 400 for layer in selection.layers)
    return Plan(
        selection,
        prunable=selection.size,
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        artifact_bytes=packed + kept + names + 4096,
    )


def weights_report(
    model: PretrainedModel,
    selection: Selection,
    masks: Mapping[str, Tensor],
    updated: Container[str] = (),
) -> dict[str, Any]:
    """What the masks do to the model, in numbers, as plain JSON values.

    updated: names of the layers whose kept weights were updated.
    """
    prunable = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    return {
        "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
        "prunable_weights": prunable,
        "pruned_weights": prunable - kept,
        "sparsity": sparsity_of(masks),
        "layers": {
            name: {
                "weights": mask.numel(),
                "sparsity": round(1 - float(mask.float().mean()), 6),
                "updated": name in updated,
            }
            for name, mask in masks.items()
        },
        "excluded": [asdict(exclusion) for exclusion in selection.excluded],
    }


def _report(
    model: SpeechModel,
    selection: Selection,
    masks: Mapping[str, Tensor],
    kept: Container[str],
    heard: Heard,
    took: Mapping[str, float],
) -> dict[str, Any]:
    return {
        "seconds": round(heard.seconds, 3),
        "silent_seconds": round(heard.silent_seconds, 3),
        "recordings": len(heard.fingerprints),
        "skipped": heard.skipped_by_reason,
        **weights_report(model, selection, masks, kept),
        "wall_seconds": {name: round(seconds, 3) for name, seconds in took.items()},
    }
