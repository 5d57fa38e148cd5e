"""Output folders that appear whole or not at all, and outputs that must not be replaced."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class OutputError(ValueError):
    """An output that must not be written."""


def require_free(folder: Path, overwrite: bool) -> None:
    """Raises OutputError when `folder` exists with content and may not be replaced."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file: give the name of a new folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise OutputError(f"{folder} exists already: give another folder, or --overwrite it")


def require_free_file(file: Path, overwrite: bool) -> None:
    """Raises OutputError when `file` is a folder, or exists and may not be replaced."""
    if file.is_dir():
        raise OutputError(f"{file} is a folder: give the name of a file")
    if file.exists() and not overwrite:
        raise OutputError(f"{file} exists already: give another file, or --overwrite it")


@contextmanager
def whole_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A new folder to write into, moved to `folder` at the end of the block if it succeeds.

    Raises OutputError when `folder` holds something and `overwrite` is false. After an error
    inside the block nothing is left, and what was there before still is.
    """
    require_free(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    draft.chmod(0o755)
    try:
        yield draft
        for path in draft.rglob("*"):  # some writers make files for their owner alone
            path.chmod(0o755 if path.is_dir() else 0o644)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            folder.rename(old / "replaced")
            draft.rename(folder)
            shutil.rmtree(old)
        else:
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
