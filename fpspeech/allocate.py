"""How the sparsity is spread over a speech model's layers, for one speaker."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase

from fpspeech.models import PretrainedModel, SpeechModel
from fpspeech.pruning import (
    InputStatistics,
    PrunableLayer,
    PruningConfig,
    prune_layers,
)
from fpspeech.pruning.allocation import CAP, Allocation, erk, owl
from fpspeech.pruning.sensitivity import Costs, measure_costs, sensitivity
from fpspeech.signals import Reference

LEVELS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Sparsities at which the cost of pruning each part of the model alone is measured."""

ALLOCATED_GROUPS = ("row", "layer")
"""Comparison groups of a sparsity of their own; others decide themselves what each layer loses."""

_BLOCK = re.compile(r"(.*?\.\d+)\.")  # up to the first number: a layer of a stack, with its stack


def allocate(
    model: SpeechModel,
    layers: Sequence[PrunableLayer],
    statistics: Mapping[str, InputStatistics],
    pruning: PruningConfig,
    allocation: str,
    costs: Costs | None = None,
) -> PruningConfig:
    """The settings with the sparsity of every layer written out; see `config.ALLOCATIONS`.

    costs: of `part_costs`, for "sensitivity"; "search" is `search_allocation`'s. What
    `pruning.overrides` says of single layers comes on top of the allocation. Where the group of
    `pruning` decides itself what each layer loses, there is nothing to allocate.
    """
    if allocation == "uniform" or pruning.group not in ALLOCATED_GROUPS:
        return pruning
    if allocation == "owl":
        found = owl_by_block(model, layers, statistics, pruning.sparsity)
    elif allocation == "erk":
        found = erk(layers, pruning.sparsity)
    else:
        assert costs is not None  # `part_costs` was called
        found = sensitivity(parts(model, layers), costs, pruning.sparsity)
    return replace(pruning, overrides=(*found.overrides, *pruning.overrides))


def owl_by_block(
    model: SpeechModel,
    layers: Sequence[PrunableLayer],
    statistics: Mapping[str, InputStatistics],
    sparsity: float,
) -> Allocation:
    """OWL over the blocks of `block_of`."""
    blocks = {layer.name: block_of(model, layer.name) for layer in layers}
    return owl(layers, statistics, sparsity, cap=highest(sparsity), blocks=blocks)


def highest(sparsity: float) -> float:
    """The cap on a layer's sparsity: the usual one, unless more is to be pruned anyway."""
    return max(CAP, (1 + sparsity) / 2)


def block_of(model: PretrainedModel, name: str) -> str:
    """The block of a layer: its layer of a stack of transformer layers, else its component."""
    found = _BLOCK.match(name)
    component = _component(model, name)
    # The convolutions in front are a stack too, but one part of the model.
    attends = component is None or component.split(".")[-1] in ("self_attn", "cross_attn", "ffn")
    return found.group(1) if found and attends else component or name


def parts(
    model: PretrainedModel, layers: Sequence[PrunableLayer]
) -> dict[str, list[PrunableLayer]]:
    """The layers by component; one that belongs to none is a part of its own."""
    return _grouped(layers, lambda name: _component(model, name) or name)


def parts_of_blocks(
    model: PretrainedModel, layers: Sequence[PrunableLayer]
) -> dict[str, list[PrunableLayer]]:
    """The layers by block, and by component within it, such as "encoder.layers.0 ffn"."""

    def part(name: str) -> str:
        block, component = block_of(model, name), _component(model, name)
        if component is None or component == block:
            return block
        return f"{block} {component.split('.')[-1]}"

    return _grouped(layers, part)


def _grouped(
    layers: Sequence[PrunableLayer], part: Callable[[str], str]
) -> dict[str, list[PrunableLayer]]:
    found: dict[str, list[PrunableLayer]] = {}
    for layer in layers:
        found.setdefault(part(layer.name), []).append(layer)
    return found


def _component(model: PretrainedModel, name: str) -> str | None:
    for component, patterns in model.components.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return component
    return None


def part_costs(
    model: SpeechModel,
    layers: Sequence[PrunableLayer],
    statistics: Mapping[str, InputStatistics],
    pruning: PruningConfig,
    reference: Reference,
    generic: Mapping[str, InputStatistics] | None = None,
) -> dict[str, dict[float, float]]:
    """KL of the posteriors from the dense ones, for each part of the model pruned alone.

    reference: of the dense model, on some of the speaker's audio. generic: see `prune_layers`.
    Each part at each of `LEVELS` is one pass over that audio.
    """
    members = parts(model, layers)

    @contextmanager
    def pruned(part: str, level: float) -> Iterator[None]:
        config = replace(pruning, sparsity=level, overrides=())
        found = prune_layers(members[part], statistics, config, generic)
        with found.apply(members[part], model.network):
            yield

    def divergence() -> float:
        _, closeness = reference.compare(model)
        return closeness.divergence

    return measure_costs(members, LEVELS, pruned, divergence)
