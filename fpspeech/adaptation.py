"""One speaker heard by one model: normalised and listened to once, pruned as often as wanted.

It goes in this order: normalise the speaker's early features (where asked, see `normalize`), stream
the recordings through the normalised model once, spread the sparsity over its layers, prune and
update, then refit the output layer behind them. Nothing here reads a transcript, and the model is
left as it was.
"""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from fpspeech.adapt_head import adapt_head
from fpspeech.allocate import (
    ALLOCATED_GROUPS,
    allocate,
    owl_by_block,
    part_costs,
    parts_of_blocks,
)
from fpspeech.config import Config
from fpspeech.corpora import Utterance
from fpspeech.evolve_front_end import evolve_front_end
from fpspeech.generic import Generic, GenericError
from fpspeech.listening import Heard, Listener, WindowStream, first_seconds, listen
from fpspeech.models import PretrainedModel, SpeechModel
from fpspeech.normalize import Normalization, Normalized, normalize
from fpspeech.pruning import (
    SCORES,
    Applied,
    InputStatistics,
    PrunableLayer,
    PrunedLayers,
    PruningConfig,
    PruningError,
    prune_layers,
    sparsity_of,
)
from fpspeech.pruning.allocation import Allocation
from fpspeech.refit_head import DenseAnswers
from fpspeech.search_allocation import SEARCH_SECONDS, search_allocation
from fpspeech.search_normalization import search_normalization
from fpspeech.sequential_listening import prune_while_listening
from fpspeech.signals import Reference

REFERENCE_SECONDS = 30.0
"""Audio on which the costs of pruning parts of a model are measured, in seconds."""


@dataclass
class Adaptation:
    """What is known of a speaker before anything is pruned.

    layers: that were listened to. heard: their statistics, under the normalisation. normalized:
    what it changes. account: how that was found, for the report. seconds: of wall time it all took.
    """

    model: SpeechModel
    layers: Sequence[PrunableLayer]
    utterances: Sequence[Utterance]
    heard: Heard
    normalized: Normalized = field(default_factory=Normalized)
    account: Mapping[str, Any] = field(default_factory=dict)
    generic: Generic | None = None
    listener: Listener | None = None
    seconds: float = 0.0

    def prune(self, config: Config, checkpoint: Path | None = None) -> PrunedLayers:
        """What `config` makes of the speaker, its normalisation included.

        In sequential order (`PruningConfig.order`) the recordings run anew for every stage.
        """
        pruning = pruning_for(self.model, config)
        with self.normalized.apply(self.model):
            pruning, account = self._allocated(pruning, config)
            if pruning.order == "sequential":
                staged = prune_while_listening(
                    self.model,
                    self.layers,
                    self.utterances,
                    pruning,
                    window_seconds=config.window_seconds,
                    batch_size=config.batch_size,
                    checkpoint=checkpoint,
                    listener=self.listener,
                    generic=self._generic_statistics,
                    variant=self.normalized.digest,
                )
                found = staged.pruned
                if not self.heard.statistics:
                    self.heard = staged.heard
            else:
                found = prune_layers(
                    self.layers, self.heard.statistics, pruning, self._generic_statistics
                )
            found = _with_normalized(found, self.normalized, self.layers)
            found = replace(found, account=account)
            return self._refitted(found) if config.refit_head else found

    def apply(self, pruned: PrunedLayers) -> Applied:
        """Puts it in force on the model; use as a context manager, or call `restore()`."""
        return pruned.apply(self.layers, self.model.network)

    def _refitted(self, pruned: PrunedLayers) -> PrunedLayers:
        """With the output layer of the pruned model; while the normalisation is in force."""
        head = self.model.head
        if head is None or head in pruned.masks or sparsity_of(pruned.masks) == 0:
            return pruned
        answers = self._dense_answers
        with self.apply(pruned):
            found = answers.refit_head()
        return replace(
            pruned,
            values={**pruned.values, **found.values},
            account={**pruned.account, "refit": found.as_json()},
        )

    @cached_property
    def _dense_answers(self) -> DenseAnswers:
        """Of the model as it is in force when they are first asked for: normalised, dense."""
        return DenseAnswers(self.model, WindowStream(self.model, self.utterances), self.listener)

    @property
    def _generic_statistics(self) -> Mapping[str, InputStatistics] | None:
        return None if self.generic is None else self.generic.statistics

    def _allocated(
        self, pruning: PruningConfig, config: Config
    ) -> tuple[PruningConfig, Mapping[str, Any]]:
        """With the sparsity of every layer written out, and an account of it."""
        if config.allocation == "search" and pruning.group in ALLOCATED_GROUPS:
            return self._searched(pruning, config)
        costs = None
        if config.allocation == "sensitivity":
            key = _without_sparsity(pruning)
            if key not in self._costs:
                self._costs[key] = part_costs(
                    self.model,
                    self.layers,
                    self.heard.statistics,
                    pruning,
                    self._reference,
                    self._generic_statistics,
                )
            costs = self._costs[key]
        statistics = self.heard.statistics
        found = allocate(self.model, self.layers, statistics, pruning, config.allocation, costs)
        return found, {}

    def _searched(
        self, pruning: PruningConfig, config: Config
    ) -> tuple[PruningConfig, Mapping[str, Any]]:
        alone = replace(pruning, order="independent")  # a candidate does not listen anew

        def candidate(allocation: Allocation) -> PruningConfig:
            return replace(alone, overrides=(*allocation.overrides, *pruning.overrides))

        def pruned(allocation: Allocation) -> Applied:
            found = prune_layers(
                self.layers, self.heard.statistics, candidate(allocation), self._generic_statistics
            )
            return self.apply(found)

        found = search_allocation(
            self.model,
            parts_of_blocks(self.model, self.layers),
            owl_by_block(self.model, self.layers, self.heard.statistics, pruning.sparsity),
            pruning.sparsity,
            pruned,
            self._first_windows(SEARCH_SECONDS),
            budget=config.search_budget,
            seed=pruning.seed,
        )
        chosen = replace(candidate(found.allocation), order=pruning.order)
        return chosen, {"allocation": found.as_json()}

    @cached_property
    def _costs(self) -> dict[PruningConfig, dict[str, dict[float, float]]]:
        return {}

    @cached_property
    def _reference(self) -> Reference:
        """The answer of the model as it is in force when it is first asked: normalised, dense."""
        return Reference(self.model, self._first_windows(REFERENCE_SECONDS))

    def _first_windows(self, seconds: float) -> list[Tensor]:
        stream = WindowStream(self.model, self.utterances)
        return first_seconds(stream, seconds, self.model.sampling_rate)


def adapt_to(
    model: SpeechModel,
    layers: Sequence[PrunableLayer],
    utterances: Sequence[Utterance],
    config: Config,
    *,
    products: frozenset[str] = frozenset(),
    generic: Generic | None = None,
    checkpoint: Path | None = None,
    listener: Listener | None = None,
) -> Adaptation:
    """Normalises as `config` says and listens once; in sequential order only `prune` listens.

    products: see `listen`, as checkpoint and listener. generic: numbers of other people, where the
    normalisation, the score or the shrinkage needs them.
    Raises NothingHeardError, Interrupted, PruningError, and GenericError where they are missing.
    """
    started = time.perf_counter()
    require_generic(config, generic, products)
    stream = WindowStream(model, utterances, config.window_seconds)
    normalized, account = _tuned(model, stream, config, generic, listener)
    sequential = config.pruning.order == "sequential"
    heard = Heard()
    if not sequential or config.allocation != "uniform":
        with normalized.apply(model):
            heard = listen(
                model,
                layers,
                utterances,
                products=products,
                product_stride=config.pruning.product_stride,
                window_seconds=config.window_seconds,
                batch_size=config.batch_size,
                checkpoint=None if sequential else checkpoint,
                listener=listener,
                variant=normalized.digest,
            )
    seconds = time.perf_counter() - started
    return Adaptation(
        model, tuple(layers), utterances, heard, normalized, account, generic, listener, seconds
    )


def _tuned(
    model: SpeechModel,
    stream: WindowStream,
    config: Config,
    generic: Generic | None,
    listener: Listener | None,
) -> tuple[Normalized, Mapping[str, Any]]:
    """What comes before pruning, as `config` says, and an account of it.

    The features normalised, the front end evolved, then the output layer fitted. A model that was
    made surer of itself fits the words that it hears, wrong ones too: so the layer is fitted behind
    a changed front only where that was good before anything was changed.
    """
    seed = config.pruning.seed
    head = None
    if config.adapt_head:
        head = adapt_head(model, stream, seed=seed, listener=listener)
    normalization, account = _normalization(model, stream, config, generic)
    normalized = Normalized()
    if generic is not None and normalization.active:
        normalized = normalize(model, stream, normalization, generic)
    if config.evolve:
        with normalized.apply(model):
            evolved = evolve_front_end(model, stream, seed=seed, listener=listener)
        account = {**account, "evolution": evolved.as_json()}
        normalized = replace(normalized, values={**normalized.values, **evolved.values})
    if head is not None:
        if head.values and normalized.values:
            with normalized.apply(model):
                head = adapt_head(model, stream, seed=seed, listener=listener)
        account = {**account, "head": head.as_json()}
        normalized = replace(normalized, values={**normalized.values, **head.values})
    return normalized, account


def before_pruning(config: Config) -> tuple[object, ...]:
    """What is done to the model before it is listened to: methods alike in it share a listening."""
    normalization = config.normalize, config.full_covariance, config.search_objective
    return *normalization, config.evolve, config.adapt_head


def require_generic(config: Config, generic: Generic | None, products: Container[str] = ()) -> None:
    """Raises GenericError where `config` needs numbers of other people that are not there.

    products: names of the layers whose Σxxᵀ the user's statistics hold, see `shrunk`.
    """
    wanted = {
        f"normalisation {config.normalize!r}": config.normalize != "none",
        f"score {config.pruning.score!r}": SCORES[config.pruning.score].needs_generic,
        f"shrinkage {config.pruning.shrinkage!r}": config.pruning.shrinkage != "none",
    }
    reasons = [what for what, needed in wanted.items() if needed]
    if reasons and generic is None:
        raise GenericError(
            f"the {reasons[0]} needs numbers of other people for this base model, found none: make "
            "them with `fpspeech generic --audio DIR` from recordings of anybody but this "
            "speaker, and give the file as --generic"
        )
    if generic is None or not config.pruning.needs_generic:
        return
    if not generic.statistics:
        raise GenericError(
            f"the generic numbers hold no statistics of the layers' inputs, which the "
            f"{reasons[-1]} needs: make them with `fpspeech generic --statistics`"
        )
    bare = [name for name, each in generic.statistics.items() if each.products is None]
    if config.pruning.shrinkage != "none" and any(name in products for name in bare):
        raise GenericError(
            f"the generic numbers hold no products of the layers' inputs, which the "
            f"{reasons[-1]} needs where the user's are counted: make them with "
            "`fpspeech generic --statistics --products`"
        )


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


def _normalization(
    model: SpeechModel, stream: WindowStream, config: Config, generic: Generic | None
) -> tuple[Normalization, Mapping[str, Any]]:
    """Where and how strongly, as given or as searched; and an account of it."""
    if generic is None or config.normalize == "none":
        return Normalization(), {}
    account: dict[str, Any] = {
        "generic_seconds": generic.seconds,
        "generic_speakers": generic.speakers,
        "full_covariance": config.full_covariance,
    }
    if config.normalize != "search":
        normalization = Normalization(config.strengths, config.full_covariance)
        return normalization, {"normalization": account | {"used": normalization.active}}
    found = search_normalization(
        model,
        stream,
        generic,
        budget=config.search_budget,
        full=config.full_covariance,
        minimise=config.search_objective,
        seed=config.pruning.seed,
    )
    return found.normalization, {"normalization": account | found.as_json()}


def _with_normalized(
    pruned: PrunedLayers, normalized: Normalized, layers: Sequence[PrunableLayer]
) -> PrunedLayers:
    """Both together, while the normalisation is in force.

    A whole weight among the values would undo the mask of its layer, so it joins the kept ones.
    """
    values = dict(normalized.values)
    kept = dict(pruned.kept)
    for layer in layers:
        if values.pop(f"{layer.name}.weight", None) is not None and layer.name not in kept:
            kept[layer.name] = layer.weight().cpu()[pruned.masks[layer.name]].half()
    return PrunedLayers(pruned.masks, kept, {**values, **pruned.values})


def _without_sparsity(pruning: PruningConfig) -> PruningConfig:
    return replace(pruning, sparsity=0.0, overrides=()) if pruning.n_of_m is None else pruning
