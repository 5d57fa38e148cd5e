"""Stage 0 of ImageNet: photos streamed from the Hugging Face Hub into folders, once for all."""

from __future__ import annotations

import argparse
from pathlib import Path

from fpspeech.corpora.images import PhotoDataset, PhotosError

DATASET = "ILSVRC/imagenet-1k"
SPLITS = {"train": "train", "val": "validation"}
"""Of the dataset, by the folder of each."""


def collect(dataset: PhotoDataset, folder: Path, per_class: int) -> int:
    """Writes up to `per_class` photos of each class, as they are encoded; returns how many.

    Folders are numbered in the dataset's order of classes, which is that of the model's outputs.
    The stream ends when every class has its share. A finished folder is left alone, a half one is
    written again. Raises PhotosError, as `PhotoDataset` does.
    """
    done = folder / ".done"
    if done.exists():
        return sum(1 for _ in folder.glob("*/*.jpg"))
    numbers = {name: number for number, name in enumerate(dataset.classes())}
    count = 0
    for photo in dataset.photos(limit_per_class=per_class):
        place = folder / f"{numbers[photo.label or '']:04d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{photo.id.rsplit('/', 1)[1]}.jpg").write_bytes(photo.read())
        count += 1
        if count % 1000 == 0:
            print(f"{count} photos", flush=True)
    done.touch()
    return count


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path, help="folder to write, with train/ and val/")
    parser.add_argument("--exp", type=Path, help="not used")
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--dataset", default=DATASET, help="a Hub id, or a local folder")
    arguments = parser.parse_args()
    for folder, split in SPLITS.items():
        place = arguments.data_dir / folder
        try:
            count = collect(PhotoDataset(arguments.dataset, split), place, arguments.per_class)
        except PhotosError as error:
            parser.error(str(error))
        print(f"{count} photos in {place}")


if __name__ == "__main__":
    main()
