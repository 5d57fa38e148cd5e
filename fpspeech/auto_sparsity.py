"""`--sparsity auto`: the highest sparsity that unlabeled audio the pruning never saw allows.

Every level is pruned from the same statistics and asked what it writes for held-out recordings.
A level is allowed while the pruned model has not collapsed, its posteriors and its transcripts
are close to the dense model's, and it writes the same when the audio changes a little; the search
ends at the first level that is not. What these signs can tell, and what not, stands in `signals`:
they hold a model to what the dense one hears, they cannot show that it hears better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from fpspeech.adaptation import Adaptation
from fpspeech.config import Config
from fpspeech.corpora import Utterance
from fpspeech.listening import WindowStream, first_seconds
from fpspeech.pruning import PrunedLayers, PruningError
from fpspeech.signals import Reference, collapsed, consistency, json_number

LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
HELD_OUT = 0.2  # share of the recordings that the pruning does not see
SIGNAL_SECONDS = 60.0  # of held-out audio that is listened to at every level

MOST_DIVERGENCE = 0.10  # nats a position
LEAST_AGREEMENT = 0.85  # share of the dense transcript's words
MOST_INCONSISTENT = 0.10  # below the dense model's own consistency


@dataclass(frozen=True)
class Level:
    """The signs at one sparsity; `reason` says why it is not allowed, None where it is."""

    sparsity: float
    divergence: float
    agreement: float
    consistency: float
    entropy: float
    reason: str | None


@dataclass(frozen=True)
class AutoSparsity:
    """The sparsity that is allowed (0 where not even the lowest level is) and what was measured."""

    sparsity: float
    levels: tuple[Level, ...]
    dense_consistency: float
    dense_entropy: float

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report; an entropy of nothing informative is None."""
        value = asdict(self)
        for each in (*value["levels"], value):
            for name in ("entropy", "dense_entropy"):
                if name in each:
                    each[name] = json_number(each[name])
        return value


def find_sparsity(
    adaptation: Adaptation,
    config: Config,
    held_out: Sequence[Utterance],
    *,
    levels: Sequence[float] = LEVELS,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[AutoSparsity, PrunedLayers]:
    """Tries the levels from the lowest on; returns what was found, and the masks of that level.

    held_out: recordings that `adaptation` was not made from, transcripts unused. say: is told each
    level's signs. Raises PruningError where there is none, or where the levels do not rise.
    """
    if not held_out:
        raise PruningError(
            "an automatic sparsity needs recordings that the pruning does not see, to listen to: "
            "expected two recordings or more"
        )
    if not levels or list(levels) != sorted(set(levels)):
        raise PruningError(f"expected levels of sparsity that rise, found {list(levels)}")
    model = adaptation.model
    windows = first_seconds(WindowStream(model, held_out), SIGNAL_SECONDS, model.sampling_rate)
    if not windows:
        raise PruningError(
            f"an automatic sparsity is found on held-out recordings, but of these {len(held_out)} "
            "none can be used: give more recordings, or a sparsity"
        )
    # Normalising is no damage: what is pruned is held to the normalised model.
    with adaptation.normalized.apply(model):
        reference = Reference(model, windows)
        dense_consistency = consistency(model, windows, plain=reference.heard)
    tried: list[Level] = []
    allowed, pruned = 0.0, None
    for sparsity in levels:
        found = adaptation.prune(_at(config, sparsity))
        level = _measured(adaptation, found, sparsity, reference, windows, dense_consistency)
        tried.append(level)
        say(
            f"{sparsity:.0%} zeros: divergence {level.divergence:.3f}, agreement "
            f"{level.agreement:.0%}, consistency {level.consistency:.0%}"
            + (f": too much, {level.reason}" if level.reason else "")
        )
        if level.reason is not None:
            break
        allowed, pruned = sparsity, found
    if pruned is None:
        pruned = adaptation.prune(_at(config, 0.0))
    found_sparsity = AutoSparsity(allowed, tuple(tried), dense_consistency, reference.heard.entropy)
    return found_sparsity, pruned


def _at(config: Config, sparsity: float) -> Config:
    return replace(config, pruning=replace(config.pruning, sparsity=sparsity))


def _measured(
    adaptation: Adaptation,
    pruned: PrunedLayers,
    sparsity: float,
    reference: Reference,
    windows: Sequence[Tensor],
    dense_consistency: float,
) -> Level:
    with adaptation.apply(pruned):
        heard, closeness = reference.compare(adaptation.model)
        consistent = consistency(adaptation.model, windows, plain=heard)
    reason = collapsed(heard, reference.heard)
    if reason is None and closeness.divergence > MOST_DIVERGENCE:
        reason = f"its posteriors are more than {MOST_DIVERGENCE:g} nats from the dense model's"
    if reason is None and closeness.agreement < LEAST_AGREEMENT:
        reason = f"it agrees with less than {LEAST_AGREEMENT:.0%} of the dense transcript"
    if reason is None and consistent < dense_consistency - MOST_INCONSISTENT:
        reason = "it changes its mind where the audio hardly changes"
    return Level(
        sparsity,
        closeness.divergence,
        closeness.agreement,
        consistent,
        heard.entropy,
        reason,
    )
