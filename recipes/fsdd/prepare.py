"""Stage 0 of FSDD: the manifest of every recording."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from recipes.manifest import Recording, write_manifest

DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
LEFT_OUT = ("theo", "nicolas")
ADAPTATION_TAKES = 25  # of the 50 takes of each digit; the later ones are the test
DOWNLOAD = "git clone https://github.com/Jakobovski/free-spoken-digit-dataset"


def find_recordings(data_dir: Path | None) -> Path:
    """The folder of `{digit}_{speaker}_{take}.wav`, or FileNotFoundError with the remedy."""
    root = os.environ.get("FPSPEECH_DATA")
    folder = data_dir or (Path(root, "fsdd") if root else None)
    if folder is None:
        raise FileNotFoundError(
            f"FSDD: neither --data-dir nor $FPSPEECH_DATA is set; get the corpus with\n"
            f"    {DOWNLOAD}\nand pass --data-dir free-spoken-digit-dataset"
        )
    for candidate in (folder / "recordings", folder):
        if any(candidate.glob("[0-9]_*_*.wav")):
            return candidate.resolve()
    raise FileNotFoundError(
        f"FSDD: no recordings like 0_theo_0.wav in {folder} or {folder / 'recordings'}; "
        f"get the corpus with\n    {DOWNLOAD}"
    )


def recordings(folder: Path) -> list[Recording]:
    """Every recording; the speakers left out of training are split by take."""
    found = []
    for path in folder.glob("[0-9]_*_*.wav"):
        digit, speaker, take = path.stem.split("_")
        split = "train"
        if speaker in LEFT_OUT:
            split = "adapt" if int(take) < ADAPTATION_TAKES else "test"
        identity = f"{speaker}-{digit}-{int(take):02d}"
        found.append(Recording(identity, str(path), speaker, DIGITS[int(digit)], split))
    return sorted(found, key=lambda recording: recording.id)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    try:
        found = recordings(find_recordings(arguments.data_dir))
    except FileNotFoundError as error:
        parser.error(str(error))
    # Training recordings have a manifest of their own: personalizing never sees them.
    kept = [recording for recording in found if recording.split != "train"]
    write_manifest(arguments.manifest, kept)
    training = [recording for recording in found if recording.split == "train"]
    write_manifest(arguments.manifest.with_name("training.jsonl"), training)
    print(f"{len(kept)} recordings of {', '.join(LEFT_OUT)}; {len(training)} to train on")


if __name__ == "__main__":
    main()
