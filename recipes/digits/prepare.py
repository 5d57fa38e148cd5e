"""Stage 0 of the digits: pictures as files, some to train the base model, the others for users."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from fpspeech.output_folder import whole_folder

TRAINING_SHARE = 0.15  # of the pictures of each digit; users' photos are the rest
BRIGHTEST = 16  # of a pixel, as scikit-learn has them


def write_pictures(folder: Path) -> dict[str, int]:
    """Writes `folder/training` and `folder/photos`, a folder a digit; returns how many in each.

    Which picture goes where depends on its pixels alone, so a copy of one is never in both.
    """
    digits = load_digits()
    counts = {"training": 0, "photos": 0, "copies left out": 0}
    seen: set[str] = set()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        gray = np.round(pixels * (255 / BRIGHTEST)).astype(np.uint8)  # (8, 8)
        content = hashlib.sha256(gray.tobytes()).hexdigest()
        if content in seen:
            counts["copies left out"] += 1
            continue
        seen.add(content)
        part = "training" if int(content[:8], 16) < TRAINING_SHARE * 2**32 else "photos"
        counts[part] += 1
        place = folder / part / str(digit)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(gray).save(place / f"{number:04d}.png")
    return counts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path, help="folder to write")
    parser.add_argument("--exp", type=Path, help="not used")
    data_dir = parser.parse_args().data_dir
    if data_dir.is_dir():
        return
    with whole_folder(data_dir) as draft:
        counts = write_pictures(draft)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
