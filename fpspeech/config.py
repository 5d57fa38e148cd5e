"""The settings of a personalization: one frozen value, written whole into every artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fpspeech.pruning import PruningConfig, PruningError
from fpspeech.pruning.masks import n_of_m

BATCH_NORM = ("match", "keep")
OUTPUT_PRIOR = ("none", "em")
OBJECTIVES = ("entropy", "uncertainty", "words")
ALLOCATIONS = ("uniform", "owl", "erk", "sensitivity", "search")

SPARSITY_OF_FAMILY = {"whisper": 0.3}
"""Where the usual sparsity is more than the tables (docs/results.md) bear out."""


def default_sparsity(family: str | None, group: str = PruningConfig.group) -> float:
    """The share of the weights of such a model that is pruned where nothing else is said.

    group: see `PruningConfig`; an N:M pattern says it itself.
    """
    pattern = n_of_m(group)
    if pattern is not None and pattern[1]:
        return 1 - pattern[0] / pattern[1]
    if family is None:
        return PruningConfig.sparsity
    return SPARSITY_OF_FAMILY.get(family, PruningConfig.sparsity)


@dataclass(frozen=True)
class Config:
    """How to listen and how to prune.

    pruning: score, sparsity and comparison group. exclude: patterns of module names to leave
    dense beside the family's own exclusions. components: (name of a part of the model, sparsity)
    pairs. default_exclusions: keep the family's own. window_seconds: longest piece of audio run
    at once, in seconds; None: the model's own. batch_size: windows run together where the
    checkpoint can, or photos. language: what is spoken. batch_norm: what becomes of the BatchNorm
    moments of an image model, "match" (see `match_batch_norms`) or "keep". output_prior: of an
    image model, "em" (the output layer learns the user's shares of the classes, see
    `estimate_prior`, and classes the user does not photograph are never answered) or "none".
    normalize: the speaker's early features, "none", "search" (where the model gets surer, see
    `search_normalization`) or strengths such as "features=1,layer0=0.5". full_covariance: whether
    whole covariances are matched. search_budget: the most evaluations of a search.
    search_objective: what the search for a normalisation lowers, one of `OBJECTIVES`. evolve:
    whether the front end of a CTC model is tuned, see `evolve_front_end`. adapt_head: whether its
    output layer is, see `fpspeech.adapt_head`. refit_head: whether that layer is refitted behind
    pruned ones, where the family has one that can be, see `fpspeech.refit_head`. allocation: how
    the sparsity is spread over the layers of a speech model, one of `ALLOCATIONS`; no effect where
    the group of `pruning` decides itself what each layer loses. automatic: whether the sparsity of
    `pruning` was, or is to be, found on unlabeled audio, see `find_sparsity`.
    """

    pruning: PruningConfig = field(default_factory=PruningConfig)
    exclude: tuple[str, ...] = ()
    components: tuple[tuple[str, float], ...] = ()
    default_exclusions: bool = True
    window_seconds: float | None = None
    batch_size: int = 1
    language: str = "en"
    batch_norm: str = "match"
    output_prior: str = "none"
    normalize: str = "none"
    full_covariance: bool = False
    search_budget: int = 24
    search_objective: str = "entropy"
    evolve: bool = False
    adapt_head: bool = False
    refit_head: bool = True
    allocation: str = "owl"
    automatic: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise PruningError(f"batch size: expected 1 or more, found {self.batch_size}")
        if self.batch_norm not in BATCH_NORM:
            raise PruningError(
                f"batch norm: expected one of {list(BATCH_NORM)}, found {self.batch_norm!r}"
            )
        if self.output_prior not in OUTPUT_PRIOR:
            raise PruningError(
                f"output prior: expected one of {list(OUTPUT_PRIOR)}, found {self.output_prior!r}"
            )
        if self.allocation not in ALLOCATIONS:
            raise PruningError(
                f"allocation: expected one of {list(ALLOCATIONS)}, found {self.allocation!r}"
            )
        if self.search_objective not in OBJECTIVES:
            raise PruningError(
                f"search objective: expected one of {list(OBJECTIVES)}, found "
                f"{self.search_objective!r}"
            )
        if self.search_budget < 1:
            raise PruningError(f"search budget: expected 1 or more, found {self.search_budget}")
        _ = self.strengths
        if self.window_seconds is not None and self.window_seconds < 1:
            raise PruningError(
                f"window seconds: expected 1 s or more, found {self.window_seconds:g} s"
            )

    @property
    def strengths(self) -> tuple[tuple[str, float], ...]:
        """Those that `normalize` gives, as (group of sites, strength) pairs."""
        if self.normalize in ("none", "search"):
            return ()
        pairs = []
        for part in self.normalize.split(","):
            name, _, strength = part.partition("=")
            try:
                pairs.append((name.strip(), float(strength)))
            except ValueError:
                raise PruningError(
                    "normalize: expected none, search, or strengths such as "
                    f"features=1,layer0=0.5; found {self.normalize!r}"
                ) from None
        return tuple(pairs)

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Config:
        """Undoes `as_json`; raises TypeError on unknown keys, PruningError on bad values."""
        pruning = dict(value["pruning"])
        pruning["overrides"] = _pairs(pruning["overrides"])
        others = {each.name: value[each.name] for each in fields(cls) if each.name in value}
        unknown = value.keys() - others.keys()
        if unknown:
            raise TypeError(f"unknown settings {sorted(unknown)}")
        return cls(
            **{
                "allocation": "uniform",  # the only one there was before it was written down
                "refit_head": False,  # nor was there this
                **others,
                "pruning": PruningConfig(**pruning),
                "exclude": tuple(value["exclude"]),
                "components": _pairs(value["components"]),
            }
        )


def _pairs(rows: Any) -> tuple[tuple[str, float], ...]:
    return tuple((str(name), float(sparsity)) for name, sparsity in rows)
