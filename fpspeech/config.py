"""The settings of a personalization: one frozen value, written whole into every artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fpspeech.pruning import PruningConfig, PruningError

BATCH_NORM = ("match", "keep")


@dataclass(frozen=True)
class Config:
    """How to listen and how to prune.

    pruning: score, sparsity and comparison group. exclude: patterns of module names to leave
    dense beside the family's own exclusions. components: (name of a part of the model, sparsity)
    pairs. default_exclusions: keep the family's own. window_seconds: longest piece of audio run
    at once, in seconds; None: the model's own. batch_size: windows run together where the
    checkpoint can, or photos. language: what is spoken. batch_norm: what becomes of the BatchNorm
    moments of an image model, "match" (see `match_batch_norms`) or "keep".
    """

    pruning: PruningConfig = field(default_factory=PruningConfig)
    exclude: tuple[str, ...] = ()
    components: tuple[tuple[str, float], ...] = ()
    default_exclusions: bool = True
    window_seconds: float | None = None
    batch_size: int = 1
    language: str = "en"
    batch_norm: str = "match"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise PruningError(f"batch size: expected 1 or more, found {self.batch_size}")
        if self.batch_norm not in BATCH_NORM:
            raise PruningError(
                f"batch norm: expected one of {list(BATCH_NORM)}, found {self.batch_norm!r}"
            )
        if self.window_seconds is not None and self.window_seconds < 1:
            raise PruningError(
                f"window seconds: expected 1 s or more, found {self.window_seconds:g} s"
            )

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
                **others,
                "pruning": PruningConfig(**pruning),
                "exclude": tuple(value["exclude"]),
                "components": _pairs(value["components"]),
            }
        )


def _pairs(rows: Any) -> tuple[tuple[str, float], ...]:
    return tuple((str(name), float(sparsity)) for name, sparsity in rows)
