"""Stage 0 of Imagenette: the folder of fast.ai, downloaded where it is not there."""

from __future__ import annotations

import argparse
from pathlib import Path

from fpspeech.corpora.archives import Archive, ArchiveError, fetch_archive

ARCHIVE = Archive("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz")
FOLDER = "imagenette2-320"  # in the archive


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path, help=f"folder to fill, called {FOLDER}")
    parser.add_argument("--exp", type=Path, help="not used")
    data_dir = parser.parse_args().data_dir
    if all((data_dir / part).is_dir() for part in ("train", "val")):
        return
    if data_dir.name != FOLDER:
        parser.error(f"{data_dir}: expected a folder called {FOLDER}, as in the archive")
    try:
        fetch_archive(ARCHIVE, data_dir.parent)
    except ArchiveError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
