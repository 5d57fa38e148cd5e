"""Forward passes that can be run again under other weights, and the stages they are run up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from fpspeech.pruning.layers import PrunableLayer, PruningError
from fpspeech.pruning.statistics import Valid, input_of


@dataclass(frozen=True)
class Replay:
    """One forward pass over one window, as often as it is wanted.

    run: the pass, on the same data whatever the weights are. valid: the positions of each layer
    that count, see `Observer.counting`.
    """

    run: Callable[[], object]
    valid: Valid | None = None


@dataclass(frozen=True)
class Stage:
    """Layers that are pruned together, from inputs that were measured together.

    calls: after how many calls of these layers a pass need not go on; None: it runs to its end.
    """

    layers: tuple[PrunableLayer, ...]
    calls: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """The layers' names."""
        return tuple(layer.name for layer in self.layers)


@torch.inference_mode()
def execution_stages(
    layers: Sequence[PrunableLayer],
    replay: Replay,
    stages: Sequence[Sequence[str]] | None = None,
) -> tuple[Stage, ...]:
    """The stages in which `layers` are pruned, from one pass that shows when each one runs.

    stages: patterns of layer names (as in `fnmatch`), each stage with some. By default layers that
    are called one after the other on the same tensor share a stage (query, key and value of one
    attention), in order of their first calls. Layers that the pass does not call come last.
    A pass that calls a layer more than once may do so more often on other data, so its stage runs
    to the end. Raises PruningError where `stages` leaves a layer out or names one twice or none.
    """
    if stages is not None:
        in_stages = _named_stages(layers, stages)
    groups, calls = _record(layers, replay)
    if stages is None:
        called = {layer.name for group in groups for layer in group}
        in_stages = [*groups, [layer for layer in layers if layer.name not in called]]
    return tuple(
        Stage(
            tuple(group),
            len(group) if all(calls[layer.name] == 1 for layer in group) else None,
        )
        for group in in_stages
        if group
    )


@torch.inference_mode()
def run_up_to(stage: Stage, replay: Replay) -> None:
    """Runs a pass until the stage's layers are all called; the last one itself runs no more."""
    left = stage.calls

    def reached(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal left
        if left is not None:
            left -= 1
            if left == 0:
                raise _Reached

    with hooked(dict.fromkeys(stage.layers, reached)), suppress(_Reached):
        replay.run()


class _Reached(Exception):
    """The last layer of the stage has been called."""


Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


@contextmanager
def hooked(hooks: dict[PrunableLayer, Hook]) -> Iterator[None]:
    """Calls each layer's hook before the layer runs, behind the hooks that are there already."""
    handles = []
    try:
        for layer, hook in hooks.items():
            handles.append(layer.module.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _record(
    layers: Sequence[PrunableLayer], replay: Replay
) -> tuple[list[list[PrunableLayer]], Counter[str]]:
    """Layers by the tensor they take in, in order of their first calls; and how often each runs."""
    groups: list[list[PrunableLayer]] = []
    calls: Counter[str] = Counter()
    # Held until the next layer is called: memory that is free could be another tensor's by then.
    previous: Tensor | None = None

    def recorder(layer: PrunableLayer) -> Hook:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal previous
            calls[layer.name] += 1
            if calls[layer.name] > 1:
                return
            inputs = input_of(args, kwargs)
            if previous is not None and _same(previous, inputs):
                groups[-1].append(layer)
            else:
                groups.append([layer])
            previous = inputs

        return record

    with hooked({layer: recorder(layer) for layer in layers}):
        replay.run()
    return groups, calls


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (
        (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())
    )


def _named_stages(
    layers: Sequence[PrunableLayer], stages: Sequence[Sequence[str]]
) -> list[list[PrunableLayer]]:
    found: list[list[PrunableLayer]] = []
    taken: dict[str, int] = {}
    for number, patterns in enumerate(stages, start=1):
        for pattern in patterns:
            if not any(fnmatchcase(layer.name, pattern) for layer in layers):
                raise PruningError(
                    f"stage {number} names {pattern!r}, which is no pruned layer: layers are named "
                    f"such as {layers[0].name!r}"
                )
        group = [
            layer for layer in layers if any(fnmatchcase(layer.name, each) for each in patterns)
        ]
        for layer in group:
            if layer.name in taken:
                raise PruningError(
                    f"{layer.name} stands in stage {taken[layer.name]} and in stage {number}: "
                    "expected every layer in one stage"
                )
            taken[layer.name] = number
        found.append(group)
    missing = [layer.name for layer in layers if layer.name not in taken]
    if missing:
        raise PruningError(
            f"no stage holds {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}: "
            "expected every pruned layer in one stage"
        )
    return found
