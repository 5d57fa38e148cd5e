"""The use case: a speaker's unlabeled recordings and a base model in, a personal model out."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from fpspeech.adaptation import Adaptation, adapt_to, pruning_for
from fpspeech.auto_sparsity import HELD_OUT, find_sparsity
from fpspeech.config import Config, default_sparsity
from fpspeech.corpora import Utterance, contents, hold_out
from fpspeech.generic import Generic
from fpspeech.listening import Listener
from fpspeech.models import PretrainedModel, SpeechModel
from fpspeech.personal import Base, Personal, Recordings
from fpspeech.pruning import (
    PrunedLayers,
    PruningConfig,
    PruningError,
    Selection,
    products_for,
    select,
    sparsity_of,
)


def personalize(
    model: SpeechModel,
    utterances: Sequence[Utterance],
    config: Config | None = None,
    *,
    generic: Generic | None = None,
    checkpoint: Path | None = None,
    listener: Listener | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Personal:
    """Streams a speaker's recordings through `model` once and prunes what contributes little.

    With an automatic sparsity a share of them is held back to find it on, see `find_sparsity`. In
    sequential order (`PruningConfig.order`) they stream by once a stage. The model is left as
    it was; `Personal.apply` puts the result in force. Transcripts are never read. config: by
    default the usual settings at the `default_sparsity`. generic: see `adapt_to`. checkpoint: see
    `listen` and `prune_while_listening`. Raises NothingHeardError, Interrupted, GenericError or
    PruningError.
    """
    config = config or Config(PruningConfig(sparsity=default_sparsity(model.family)))
    if config.output_prior != "none":
        raise PruningError(
            f"output prior {config.output_prior!r}: it prunes classes that a user does not have, "
            "and speech is no set of classes but an open vocabulary: use 'none'"
        )
    selection = select_layers_of(model, config)
    held_out: Sequence[Utterance] = ()
    if config.automatic:
        utterances, held_out = _split(utterances, config.pruning.seed)
    adaptation = adapt_to(
        model,
        selection.layers,
        utterances,
        config,
        products=products_for(selection.layers, config.pruning),
        generic=generic,
        checkpoint=checkpoint,
        listener=listener,
    )
    return make_personal(
        adaptation, selection, config, held_out=held_out, checkpoint=checkpoint, say=say
    )


def make_personal(
    adaptation: Adaptation,
    selection: Selection,
    config: Config,
    *,
    held_out: Sequence[Utterance] = (),
    checkpoint: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Personal:
    """Prunes what contributes little: one listening serves every sparsity.

    selection: what was listened to. held_out: recordings to find an automatic sparsity on.
    checkpoint: of the sequential order. say: as in `find_sparsity`. The model is left as it was.
    Raises PruningError.
    """
    started = time.perf_counter()
    automatic = None
    if config.automatic:
        automatic, pruned = find_sparsity(adaptation, config, held_out, say=say)
        found = replace(config.pruning, sparsity=automatic.sparsity)
        config = replace(config, pruning=found)
    else:
        pruned = adaptation.prune(config, checkpoint)
    took = {"listening": adaptation.seconds, "pruning": time.perf_counter() - started}
    report = _report(adaptation, selection, pruned, took)
    if automatic is not None:
        report["automatic_sparsity"] = automatic.as_json()
    return Personal(
        base=Base.of(adaptation.model),
        config=config,
        masks=pruned.masks,
        # What a sparsity was found on is no test of it either.
        recordings=Recordings.of({*adaptation.heard.fingerprints.values(), *contents(held_out)}),
        seconds=adaptation.heard.seconds,
        values=pruned.values,
        kept=pruned.kept,
        report=report,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("fpspeech", "torch", "transformers")},
        },
    )


def _split(utterances: Sequence[Utterance], seed: int) -> tuple[list[Utterance], list[Utterance]]:
    """Recordings to prune from, and those to find a sparsity on; no copy of one among the other.

    Raises PruningError where there are too few.
    """
    share = HELD_OUT if len(utterances) * HELD_OUT >= 1 else 0.5
    kept, held_out = hold_out(utterances, share, seed)
    if held_out:
        known = contents(kept)
        held_out = [each for each in held_out if not contents([each]) & known]
    if not held_out:
        raise PruningError(
            "an automatic sparsity needs recordings that the pruning does not see: expected two "
            f"different ones or more, found {len(utterances)}; cut a long one, or give a sparsity"
        )
    return kept, held_out


def select_layers_of(model: PretrainedModel, config: Config) -> Selection:
    """The layers that `config` prunes in `model`, and the exclusions with their reasons."""
    exclude = dict(model.exclusions) if config.default_exclusions else {}
    exclude |= dict.fromkeys(config.exclude, "excluded by request")
    found = select(model.network, config.pruning, exclude)
    layers = (replace(each, tokens=model.reads_tokens(each.name)) for each in found.layers)
    return replace(found, layers=tuple(layers))


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
    adaptation: Adaptation,
    selection: Selection,
    pruned: PrunedLayers,
    took: Mapping[str, float],
) -> dict[str, Any]:
    heard = adaptation.heard
    return {
        "seconds": round(heard.seconds, 3),
        "silent_seconds": round(heard.silent_seconds, 3),
        "recordings": len(heard.fingerprints),
        "skipped": heard.skipped_by_reason,
        **adaptation.account,
        **pruned.account,
        **weights_report(adaptation.model, selection, pruned.masks, pruned.kept),
        "wall_seconds": {name: round(seconds, 3) for name, seconds in took.items()},
    }
