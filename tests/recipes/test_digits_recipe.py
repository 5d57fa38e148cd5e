"""The offline image demo from end to end, little trained; ImageNet's recipes in miniature."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny_resnet import CLASSES, write_photos

from fpspeech.corpora.images import PhotoDataset, photos_in_folder
from fpspeech.models import load_image_model
from fpspeech.recipe import read_recipe
from fpspeech.user_photos import UserPhotos

pytest.importorskip("sklearn")

from recipes.digits.prepare import write_pictures
from recipes.digits.train import train
from recipes.image_table import main as table_main
from recipes.image_table import measure_user
from recipes.imagenet.collect import collect

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The pictures, a model trained for a few epochs, and the recipe made to point at them."""
    exp = tmp_path_factory.mktemp("digits")
    counts = write_pictures(exp)
    assert counts == {"training": 320, "photos": 1477, "copies left out": 0}
    train(exp / "training", exp / "model", epochs=6, rate=4e-3, seed=0)
    text = (ROOT / "recipes" / "digits" / "digits.yaml").read_text()
    (exp / "digits.yaml").write_text(text.replace("exp/digits", str(exp)))
    return exp


def pixels(folder: Path) -> set[str]:
    return {
        hashlib.sha256(Image.open(photo.content).tobytes()).hexdigest()
        for photo in photos_in_folder(folder)
    }


def test_training_adaptation_and_test_pictures_never_overlap(digits):
    assert not pixels(digits / "training") & pixels(digits / "photos")
    photos = UserPhotos(read_recipe(digits / "digits.yaml"))
    for user in photos.recipe.users:
        adapt = {Path(photo.content).read_bytes() for photo in photos.adapt(user)}
        test = {Path(photo.content).read_bytes() for photo in photos.test(user)}
        assert adapt
        assert test
        assert not adapt & test


def test_matching_moments_keeps_what_pruning_alone_destroys(digits):
    recipe = read_recipe(digits / "digits.yaml")
    model = load_image_model(recipe.model)
    rows = list(measure_user(model, UserPhotos(recipe), "bruno", ["fine_pruning"], [0.7]))
    found = {(row.method, row.calibration, row.batch_norm): row for row in rows}
    dense = found["dense", "", ""].numbers
    assert dense.dense_all.rate > 0.85
    assert dense.pruned_all.rate == dense.dense_all.rate
    kept = found["fine_pruning", "own photos", "keep"].numbers
    matched = found["fine_pruning", "own photos", "match"].numbers
    assert matched.pruned_all.rate > kept.pruned_all.rate + 0.15
    assert kept.dense_all.rate == dense.dense_all.rate
    assert ("fine_pruning", "own photos", "estimated anew") in found
    at_once = found["fine_pruning", "own photos", "matched at once"].numbers
    assert at_once.pruned_all.rate < matched.pruned_all.rate
    assert ("fine_pruning", "other classes' photos", "match") in found
    for row in rows:
        assert row.numbers.dense_user.rate >= row.numbers.dense_all.rate


def test_the_table_is_written(digits, monkeypatch, capsys):
    arguments = ["table", str(digits / "digits.yaml"), str(digits / "table")]
    arguments += ["--user", "anna", "--user", "bruno", "--method", "magnitude"]
    monkeypatch.setattr("sys.argv", [*arguments, "--sparsity", "0.3"])
    table_main()
    text = (digits / "table" / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert text.startswith("| method | calibrated on | BatchNorm | 30% zeros, all classes | 30%")
    rows = json.loads((digits / "table" / "table.json").read_text())
    assert [row["batch_norm"] for row in rows] == ["", "keep", "match"] * 2


def test_imagenet_is_collected_once_class_by_class(tmp_path):
    source = write_photos(tmp_path / "source", each=3)
    dataset = PhotoDataset(str(source), "train")
    assert collect(dataset, tmp_path / "test", per_class=2) == 12
    folders = sorted(path.name for path in (tmp_path / "test").iterdir() if path.is_dir())
    assert folders == [f"{number:04d}" for number in range(len(CLASSES))]
    (tmp_path / "test" / "0000").rename(tmp_path / "moved")  # a finished folder is left alone
    assert collect(dataset, tmp_path / "test", per_class=2) == 10


def test_the_imagenet_recipe_runs_in_miniature(tmp_path):
    from tiny_resnet import write_tiny_resnet

    source = write_photos(tmp_path / "source", each=6)
    for part in ("adapt", "test"):
        collect(PhotoDataset(str(source), "train"), tmp_path / part, per_class=6)
    recipe = yaml.safe_load((ROOT / "recipes" / "imagenet" / "imagenet.yaml").read_text())
    recipe["model"] = str(write_tiny_resnet(tmp_path / "model"))
    recipe["adapt"] = {"folder": str(tmp_path / "adapt"), "limit_per_class": 2}
    recipe["test"] = {"folder": str(tmp_path / "test")}
    recipe["users"] = {"five": {"classes": 5}, "three": {"classes": 3}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    photos = UserPhotos(read_recipe(tmp_path / "recipe.yaml"))
    model = load_image_model(tmp_path / "model")
    rows = list(measure_user(model, photos, "five", ["wanda"], [0.5]))
    # What the user adapted on is in the test folder here too; it is told by content.
    assert rows[0].numbers.dense_all.right.size == 5 * 4
    assert set(photos.classes_of("three")) < set(photos.classes_of("five"))


def test_the_imagenette_recipe_runs_in_miniature(tmp_path):
    from tiny_resnet import write_tiny_resnet

    for part in ("train", "val"):
        write_photos(tmp_path / "data" / part, each=3)
        for path in (tmp_path / "data" / part).rglob("*.jpg"):
            if part == "val":  # other bytes than in train
                Image.open(path).rotate(90).save(path)
    recipe = yaml.safe_load((ROOT / "recipes" / "imagenette" / "imagenette.yaml").read_text())
    ids = list(recipe["outputs"])[: len(CLASSES)]
    for part in ("train", "val"):
        for wordnet, name in zip(ids, CLASSES, strict=True):
            (tmp_path / "data" / part / name).rename(tmp_path / "data" / part / wordnet)
    recipe["outputs"] = dict(zip(ids, CLASSES, strict=True))
    recipe["model"] = str(write_tiny_resnet(tmp_path / "model"))
    for key, part in (("adapt", "train"), ("test", "val")):
        recipe[key]["folder"] = str(tmp_path / "data" / part)
    recipe["users"] = {"angler": {"classes": ids[:3]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    photos = UserPhotos(read_recipe(tmp_path / "recipe.yaml"))
    assert len(photos.adapt("angler")) == 9
    assert photos.outputs(CLASSES) == {wordnet: n for n, wordnet in enumerate(ids)}
    model = load_image_model(tmp_path / "model")
    rows = list(measure_user(model, photos, "angler", ["magnitude"], [0.5]))
    assert rows[0].numbers.dense_all.right.size > 0


@pytest.mark.parametrize("name", ["digits", "imagenet", "imagenette"])
def test_run_scripts_are_short_and_strict(name):
    text = (ROOT / "recipes" / name / "run.sh").read_text()
    assert len(text.splitlines()) < 60
    assert "set -euo pipefail" in text
    assert "--stop-stage" in text
