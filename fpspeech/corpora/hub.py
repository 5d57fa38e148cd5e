"""Opening a Hugging Face dataset as a stream of rows whose media stay encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PARQUET = "refs/convert/parquet"
"""Where the Hub keeps a Parquet copy of a dataset whose own loading script is no longer run."""


@dataclass(frozen=True)
class HubSplit:
    """A split of a dataset on the Hub, or of a local folder that `datasets.load_dataset` reads.

    ``path``, ``split``, ``name``, ``data_dir`` and ``revision`` are as in `load_dataset`.
    """

    path: str
    split: str
    name: str | None = None
    data_dir: str | None = None
    revision: str | None = None

    def stream(self, error: type[ValueError]) -> Any:
        """Open it as a `datasets.IterableDataset`; raises ``error``, naming it and the remedy."""
        try:
            import datasets
        except ImportError as missing:
            raise error(
                f"{self.path}: reading a Hugging Face dataset needs the package datasets; "
                "pip install 'fpspeech[datasets]'"
            ) from missing
        try:
            return datasets.load_dataset(
                self.path,
                self.name,
                split=self.split,
                data_dir=self.data_dir,
                revision=self.revision,
                streaming=True,
            )
        except (OSError, ValueError, RuntimeError) as found:
            raise self.unreadable(found, error) from found

    def unreadable(self, found: Exception, error: type[ValueError]) -> ValueError:
        """Return the error to raise where it, or a row of it, cannot be had."""
        return error(
            f"{self.path}: expected a dataset that can be read, found {type(found).__name__}: "
            f"{found}; check name, split and network, and for a gated one accept its terms on "
            "the Hub and log in"
        )


def undecoded(rows: Any, column: str, kind: str) -> Any:
    """Return the rows with a column as ``{"bytes": ..., "path": ...}``; ``kind``: Audio, Image."""
    import datasets

    return rows.cast_column(column, getattr(datasets, kind)(decode=False))


def class_names(rows: Any, column: str) -> tuple[str, ...] | None:
    """Return the names of a column's classes where it holds their numbers (ClassLabel)."""
    names = getattr((rows.features or {}).get(column), "names", None)
    return tuple(str(name) for name in names) if names else None
