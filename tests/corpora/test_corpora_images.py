import itertools
import random
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tiny_resnet import CLASSES, picture, write_photos

from fpspeech.corpora.images import (
    Photo,
    PhotoDataset,
    PhotosError,
    UnusablePhoto,
    decode,
    draw_classes,
    fingerprint,
    limit_photos,
    photos_in_folder,
    split_photos,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("images") / "photos")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    written = BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def test_a_folder_gives_photos_with_the_name_of_their_class(folder):
    photos = photos_in_folder(folder)
    assert [photo.id for photo in photos][:2] == ["ant/0.jpg", "ant/1.png"]
    assert {photo.label for photo in photos} == set(CLASSES)
    assert photos == photos_in_folder(folder)
    assert len({fingerprint(photo) for photo in photos}) == len(photos) == 36


def test_hidden_files_and_other_files_are_no_photos_and_a_photo_at_the_top_has_no_label(tmp_path):
    (tmp_path / "cat").mkdir()
    for name in ("cat/._1.png", ".thumbs.png", "cat/notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(PhotosError, match="found none"):
        photos_in_folder(tmp_path)
    picture(0, 0).save(tmp_path / "top.PNG")
    picture(0, 0).save(tmp_path / "cat" / "one.jpeg")
    found = [(photo.id, photo.label) for photo in photos_in_folder(tmp_path)]
    assert found == [("cat/one.jpeg", "cat"), ("top.PNG", None)]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_every_kind_of_picture_becomes_rgb(mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 4), 30_000, dtype=np.uint16))
        content = encoded(image, "png")
    else:
        content = encoded(picture(1, 1).convert(mode), "tiff" if mode == "CMYK" else "png")
    found = decode(Photo("x", content)).image
    assert found.mode == "RGB"


def test_a_photo_taken_upright_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    content = encoded(picture(0, 0, size=(40, 20)), "jpeg", exif=exif)
    assert decode(Photo("x", content)).image.size == (20, 40)


def test_photos_that_cannot_be_used_say_why(tmp_path, monkeypatch):
    good = encoded(picture(0, 0), "png")
    jpeg = encoded(picture(0, 0), "jpeg")
    cases = {
        "empty": b"",
        "not a picture": b"no picture at all",
        "damaged": jpeg[: len(jpeg) // 2],
    }
    for reason, content in cases.items():
        with pytest.raises(UnusablePhoto) as caught:
            decode(Photo("me.png", content))
        assert caught.value.reason == reason
        assert "me.png" in str(caught.value)
    with pytest.raises(UnusablePhoto) as caught:
        decode(Photo("gone", tmp_path / "gone.png"))
    assert caught.value.reason == "missing"
    with pytest.raises(UnusablePhoto) as caught:
        decode(Photo("cut", good[: len(good) // 2]))
    assert caught.value.reason == "damaged"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnusablePhoto) as caught:
        decode(Photo("bomb", good))
    assert caught.value.reason == "too large"


def test_the_split_depends_on_ids_and_seed_alone_and_labels_go_to_the_test_side_only(folder):
    photos = photos_in_folder(folder)
    adapt, test = split_photos(photos, 0.5, seed=0)
    shuffled = random.Random(1).sample(photos, len(photos))
    assert split_photos(shuffled, 0.5, seed=0) == (adapt, test)
    assert split_photos(photos, 0.5, seed=1) != (adapt, test)
    assert {photo.id for photo in adapt} | {photo.id for photo in test} == {p.id for p in photos}
    assert not {photo.id for photo in adapt} & {photo.id for photo in test}
    assert all(photo.label is None for photo in adapt)
    assert [photo.label for photo in test] == [name for name in CLASSES for _ in range(3)]


def test_a_limit_takes_so_many_of_each_class_whatever_the_order(folder):
    photos = photos_in_folder(folder)
    some = limit_photos(photos, 2, seed=0)
    assert [photo.label for photo in some] == [name for name in CLASSES for _ in range(2)]
    assert limit_photos(reversed(photos), 2, seed=0) == some
    assert limit_photos(photos, None, seed=0) == photos


def test_a_larger_draw_of_classes_holds_a_smaller_one():
    names = [f"{number:03d}" for number in range(100)]
    draws = [draw_classes(names, count, seed=0) for count in (5, 10, 25, 50, 100)]
    for small, large in itertools.pairwise(draws):
        assert set(small) < set(large)
    assert draw_classes(reversed(names), 5, seed=0) == draws[0]
    assert draw_classes(names, 5, seed=1) != draws[0]
    with pytest.raises(PhotosError, match="1 to 100"):
        draw_classes(names, 101, seed=0)


def test_a_dataset_streams_photos_that_are_still_encoded(folder):
    dataset = PhotoDataset(str(folder), "train")
    assert dataset.classes() == CLASSES
    photos = list(dataset.photos())
    assert len(photos) == 36
    assert all(isinstance(photo.read(), bytes) for photo in photos)
    in_folder = {fingerprint(photo): photo.label for photo in photos_in_folder(folder)}
    assert {fingerprint(photo): photo.label for photo in photos} == in_folder
    decode(photos[0])


def test_a_stream_ends_once_every_class_has_its_share(folder):
    dataset = PhotoDataset(str(folder), "train")
    photos = list(dataset.photos(["dog", "ant"], limit_per_class=2))
    assert [photo.label for photo in photos] == ["ant", "ant", "dog", "dog"]


def test_errors_about_a_dataset_name_the_remedy(folder, tmp_path):
    with pytest.raises(PhotosError, match="did you mean 'bee'"):
        list(PhotoDataset(str(folder), "train").photos(["beee"]))
    with pytest.raises(PhotosError, match="check name, split and network"):
        PhotoDataset(str(folder), "validation").classes()
    with pytest.raises(PhotosError, match="expected a dataset that can be read"):
        PhotoDataset("nobody/nothing-of-the-kind", "train").classes()
    with pytest.raises(PhotosError, match="expected a column 'picture'"):
        PhotoDataset(str(folder), "train", image="picture").classes()
    with pytest.raises(PhotosError, match="check the path"):
        photos_in_folder(tmp_path / "nowhere")
