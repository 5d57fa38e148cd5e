"""Photos: folders of them, Hugging Face datasets, and one photo as an RGB picture.

A photo's label is the name of its class, where that is known. Labels say which photos a user of a
labelled corpus has, and what is right on the test photos; whoever adapts gets photos without.
"""

from __future__ import annotations

import difflib
import hashlib
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpspeech.corpora.hub import HubSplit, class_names, undecoded
from fpspeech.corpora.split import hold_out

if TYPE_CHECKING:
    from PIL.Image import Image

PHOTO_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class PhotosError(ValueError):
    """A corpus of photos that cannot be read as given; names the place and the remedy."""


class UnusablePhoto(ValueError):
    """One photo that cannot be used; `reason` is the same few words for all of the kind."""

    def __init__(self, photo: Photo, reason: str, detail: str = ""):
        self.reason = reason
        super().__init__(f"{photo.id}: {reason}{f' ({detail})' if detail else ''}")


@dataclass(frozen=True)
class Photo:
    """One photo: a file, or the bytes of one. label: the name of its class, or None."""

    id: str
    content: Path | bytes = field(repr=False)
    label: str | None = None

    def read(self) -> bytes:
        """The bytes of the file; raises UnusablePhoto ("missing", "unreadable")."""
        if isinstance(self.content, bytes):
            return self.content
        try:
            return self.content.read_bytes()
        except FileNotFoundError:
            raise UnusablePhoto(self, "missing") from None
        except OSError as error:
            raise UnusablePhoto(self, "unreadable", str(error.strerror)) from error


@dataclass(frozen=True)
class Picture:
    """A photo that was decoded. sha256: of the bytes of its file."""

    photo: Photo
    image: Image = field(repr=False)
    sha256: str


def decode(photo: Photo) -> Picture:
    """Decodes a photo to RGB, turned the way the camera was held (EXIF).

    Raises UnusablePhoto, with `reason` one of "missing", "unreadable", "empty", "not a picture",
    "damaged" or "too large".
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    content = photo.read()
    if not content:
        raise UnusablePhoto(photo, "empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(content)) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError:
        raise UnusablePhoto(photo, "not a picture") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusablePhoto(photo, "too large", str(error)) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # as Pillow's decoders raise them
        raise UnusablePhoto(photo, "damaged", str(error)) from error
    return Picture(photo, image, hashlib.sha256(content).hexdigest())


def fingerprint(photo: Photo) -> str:
    """SHA-256 of a photo's file; raises UnusablePhoto where it cannot be read."""
    return hashlib.sha256(photo.read()).hexdigest()


def photos_in_folder(root: Path) -> list[Photo]:
    """The photos below a folder, sorted by path; the first folder below it names the class.

    Photos that lie in the folder itself have no label. Ids are paths relative to it.
    Raises PhotosError when there is no photo.
    """
    if not root.is_dir():
        raise PhotosError(f"{root}: expected a folder of photos, found none; check the path")
    photos = []
    for file in sorted(root.rglob("*")):
        within = file.relative_to(root)
        hidden = any(part.startswith(".") for part in within.parts)
        if hidden or file.suffix.lower() not in PHOTO_SUFFIXES or not file.is_file():
            continue
        label = within.parts[0] if len(within.parts) > 1 else None
        photos.append(Photo(within.as_posix(), file, label))
    if not photos:
        raise PhotosError(
            f"{root}: expected photos ({' '.join(PHOTO_SUFFIXES)}), a folder a class, found none"
        )
    return photos


@dataclass(frozen=True)
class PhotoDataset(HubSplit):
    """A split of a dataset of labelled pictures, read as a stream; see `HubSplit`.

    A local folder of pictures is a dataset, too. image, label: the names of its columns.
    """

    image: str = "image"
    label: str = "label"

    def classes(self) -> tuple[str, ...]:
        """The names of its classes, in its order; raises PhotosError when it has none."""
        return self._open()[1]

    def photos(
        self, classes: Collection[str] | None = None, limit_per_class: int | None = None
    ) -> Iterator[Photo]:
        """Streams its photos, still encoded, in its order; ids are dataset, split and row.

        classes: only these. limit_per_class: at most so many of each; the stream ends once it has
        them all. Raises PhotosError when the dataset, a column or a class is not there.
        """
        rows, names = self._open()
        if classes is not None:
            require_classes(classes, names, self.path)
        missing = dict.fromkeys(names if classes is None else classes, limit_per_class)
        for number, row in enumerate(rows):
            value = row[self.label]
            if value is None or value < 0:  # a test split whose labels are not public has -1
                continue
            label = names[value]
            if label not in missing:
                continue
            content = row[self.image]["bytes"] or Path(row[self.image]["path"])
            yield Photo(f"{self.path}/{self.split}/{number:07d}", content, label)
            left = missing[label]
            if left is not None:
                missing[label] = left - 1
                if left == 1:
                    del missing[label]
                    if not missing:
                        return

    def _open(self) -> tuple[Iterable[Any], tuple[str, ...]]:
        rows = self.stream(PhotosError)
        features = rows.features or {}
        for column in (self.image, self.label):
            if column not in features:
                raise PhotosError(
                    f"{self.path}: expected a column {column!r}, found {sorted(features)}"
                )
        names = class_names(rows, self.label)
        if names is None:
            raise PhotosError(
                f"{self.path}: expected the column {self.label!r} to name its classes "
                f"(ClassLabel), found {features[self.label]}"
            )
        return undecoded(rows, self.image, "Image"), names


def require_classes(wanted: Iterable[str], found: Collection[str], where: object) -> None:
    """Raises PhotosError, with the nearest name, for a class that is not among `found`."""
    for each in wanted:
        if each not in found:
            near = difflib.get_close_matches(each, found, n=1, cutoff=0.0)
            raise PhotosError(
                f"{where}: expected one of its {len(found)} classes, found {each!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )


def limit_photos(photos: Iterable[Photo], per_class: int | None, seed: int) -> list[Photo]:
    """At most `per_class` photos of each class; which ones depends on ids and seed alone."""
    if per_class is None:
        return list(photos)
    kept: list[Photo] = []
    for members in _by_class(photos):
        kept += draw_photos(members, per_class, seed)
    return kept


def draw_photos(photos: Iterable[Photo], count: int, seed: int) -> list[Photo]:
    """At most `count` photos, sorted by id, drawn by ids and seed alone."""
    ranked = sorted(photos, key=lambda photo: _rank(seed, photo.id))
    return sorted(ranked[:count], key=lambda photo: photo.id)


def split_photos(
    photos: Iterable[Photo], test_share: float, seed: int
) -> tuple[list[Photo], list[Photo]]:
    """Splits photos into (adapt, test), class by class: a pure function of ids and seed.

    floor(test_share * n) of each class test, see `hold_out`, whose errors it raises. The photos
    to adapt on come without their labels.
    """
    adapt: list[Photo] = []
    test: list[Photo] = []
    for members in _by_class(photos):
        kept, held = hold_out(members, test_share, seed)
        adapt += without_labels(kept)
        test += held
    return adapt, test


def without_labels(photos: Iterable[Photo]) -> list[Photo]:
    """The same photos, each without its label."""
    return [replace(photo, label=None) for photo in photos]


def draw_classes(classes: Iterable[str], count: int, seed: int) -> tuple[str, ...]:
    """Draws classes by their names and the seed alone; a larger draw holds a smaller one.

    Raises PhotosError when there are fewer.
    """
    ranked = sorted(classes, key=lambda name: _rank(seed, name))
    if not 0 < count <= len(ranked):
        raise PhotosError(f"expected to draw 1 to {len(ranked)} classes, found {count}")
    return tuple(sorted(ranked[:count]))


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


def _by_class(photos: Iterable[Photo]) -> list[list[Photo]]:
    groups: dict[str | None, list[Photo]] = {}
    for photo in photos:
        groups.setdefault(photo.label, []).append(photo)
    return [groups[label] for label in sorted(groups, key=lambda label: label or "")]
