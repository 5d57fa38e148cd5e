"""The offline image demo from end to end, little trained; ImageNet's recipes in miniature."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny_resnet import CLASSES, write_photos, write_tiny_resnet

from fpspeech.cli import main
from fpspeech.corpora.images import PhotoDataset, photos_in_folder
from fpspeech.image_results import DENSE_SYSTEM, OWN, ImageSystem, read_image_result
from fpspeech.image_stages import run_image_recipe
from fpspeech.recipe import read_recipe
from fpspeech.user_photos import UserPhotos

pytest.importorskip("sklearn")

from recipes.digits.prepare import write_pictures
from recipes.digits.train import train
from recipes.imagenet.collect import collect

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The pictures, a model trained for a few epochs, and the recipe made to point at them."""
    exp = tmp_path_factory.mktemp("digits")
    counts = write_pictures(exp / "pictures")
    assert counts == {"training": 320, "photos": 1477, "copies left out": 0}
    train(exp / "pictures" / "training", exp / "model", epochs=6, rate=4e-3, seed=0)
    text = (ROOT / "recipes" / "digits" / "digits.yaml").read_text()
    (exp / "digits.yaml").write_text(text.replace("exp/digits", str(exp)))
    return exp


def pixels(folder: Path) -> set[str]:
    return {
        hashlib.sha256(Image.open(photo.content).tobytes()).hexdigest()
        for photo in photos_in_folder(folder)
    }


def results(exp: Path, user: str) -> dict[ImageSystem, float]:
    """The accuracy among all classes of everything that was measured for a user."""
    found = [read_image_result(each) for each in (exp / "results" / user).iterdir()]
    return {each.system: 1 - each.wrong_all.mean() for each in found}


def test_training_adaptation_and_test_pictures_never_overlap(digits):
    pictures = digits / "pictures"
    assert not pixels(pictures / "training") & pixels(pictures / "photos")
    photos = UserPhotos(read_recipe(digits / "digits.yaml"))
    for user in photos.recipe.users:
        adapt = {Path(photo.content).read_bytes() for photo in photos.adapt(user)}
        test = {Path(photo.content).read_bytes() for photo in photos.test(user)}
        assert adapt
        assert test
        assert not adapt & test


def test_matching_moments_keeps_what_pruning_alone_destroys(digits, tmp_path):
    recipe = read_recipe(digits / "digits.yaml")
    changes = {"exp": str(tmp_path), "users": ["bruno"], "sparsity": [0.7], "methods": []}
    run_image_recipe(recipe, 0, 3, changes)
    found = results(tmp_path, "bruno")
    dense = found[DENSE_SYSTEM]
    assert dense > 0.85
    kept = found[ImageSystem("fine_pruning", OWN, "keep", 0.7)]
    matched = found[ImageSystem("fine_pruning", OWN, "match", 0.7)]
    assert matched > kept + 0.15
    assert ImageSystem("fine_pruning", OWN, "estimated anew", 0.7) in found
    assert found[ImageSystem("fine_pruning", OWN, "matched at once", 0.7)] < matched
    assert ImageSystem("fine_pruning", "other classes' photos", "match", 0.7) in found
    for folder in (tmp_path / "results" / "bruno").iterdir():
        result = read_image_result(folder)
        assert result.wrong_user.mean() <= result.wrong_all.mean()


def test_the_table_is_written(digits, tmp_path, capsys):
    recipe = yaml.safe_load((digits / "digits.yaml").read_text())
    recipe["pruning"] = {"score": "wanda", "update": "none"}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(recipe | {"methods": ["magnitude"]}))
    arguments = ["run", str(tmp_path / "few.yaml"), "--exp", str(tmp_path), "--sparsity", "0.3"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--user", "anna", "--user", "bruno", "--stop-stage", "4"])
    assert not end.value.code
    text = (tmp_path / "report" / "overall.md").read_text()
    assert text in capsys.readouterr().out
    assert text.startswith("| method | calibrated on | BatchNorm | 30% zeros, all classes | 30%")
    assert "| wanda | other classes' photos | match |" in text
    rows = json.loads((tmp_path / "report" / "users.json").read_text())
    assert [row["user"] for row in rows] == ["anna"] * 9 + ["bruno"] * 9
    assert all(row["photos"] > 100 for row in rows)


def test_stage_0_makes_the_pictures_and_the_model(tmp_path, monkeypatch):
    recipe = yaml.safe_load((ROOT / "recipes" / "digits" / "digits.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("digits.yaml").write_text(yaml.safe_dump(recipe))
    said: list[str] = []
    small = write_tiny_resnet(tmp_path / "small")
    run_image_recipe(read_recipe(Path("digits.yaml")), 0, 0, {"model": str(small)}, say=said.append)
    assert len(list(Path("exp/digits/pictures/training").rglob("*.png"))) == 320
    assert not Path("exp/digits/model").exists(), "another model was asked for"
    assert said[1] == "recipes.digits.prepare: exp/digits/pictures, where it is not there"
    text = Path("exp/digits/manifest.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line["user"] for line in lines} == set(recipe["users"])
    assert all(("label" in line) == (line["split"] == "test") for line in lines)
    run_image_recipe(read_recipe(Path("digits.yaml")), 0, 0, {"model": str(small)}, say=said.append)
    assert said[-1] == "exp/digits/manifest.jsonl is there"


def test_imagenet_is_collected_once_class_by_class(tmp_path):
    source = write_photos(tmp_path / "source", each=3)
    dataset = PhotoDataset(str(source), "train")
    assert collect(dataset, tmp_path / "test", per_class=2) == 12
    folders = sorted(path.name for path in (tmp_path / "test").iterdir() if path.is_dir())
    assert folders == [f"{number:04d}" for number in range(len(CLASSES))]
    (tmp_path / "test" / "0000").rename(tmp_path / "moved")  # a finished folder is left alone
    assert collect(dataset, tmp_path / "test", per_class=2) == 10


def test_the_imagenet_recipe_runs_in_miniature(tmp_path):
    source = write_photos(tmp_path / "source", each=6)
    for part in ("train", "val"):
        collect(PhotoDataset(str(source), "train"), tmp_path / "photos" / part, per_class=6)
    recipe = yaml.safe_load((ROOT / "recipes" / "imagenet" / "imagenet.yaml").read_text())
    recipe["model"] = str(write_tiny_resnet(tmp_path / "model"))
    recipe["adapt"]["limit_per_class"] = 2
    recipe["users"] = {"five": {"classes": 5}, "three": {"classes": 3}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    changes = {"data_dir": str(tmp_path / "photos"), "exp": str(tmp_path / "exp")}
    changes |= {"sparsity": [0.5], "methods": ["wanda"]}
    read = read_recipe(tmp_path / "recipe.yaml")
    run_image_recipe(read, 0, 4, changes)
    dense = read_image_result(tmp_path / "exp" / "results" / "five" / "dense")
    # What the user adapted on is in the test folder here too; it is told by content.
    assert len(dense.labels) == 5 * 4
    photos = UserPhotos(read.overruled({"data_dir": changes["data_dir"]}))
    assert set(photos.classes_of("three")) < set(photos.classes_of("five"))


def test_the_imagenette_recipe_runs_in_miniature(tmp_path):
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
    recipe["users"] = {"angler": {"classes": ids[:3]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    changes = {"data_dir": str(tmp_path / "data"), "exp": str(tmp_path / "exp")}
    changes |= {"model": str(write_tiny_resnet(tmp_path / "model"))}
    changes |= {"sparsity": [0.5], "methods": ["magnitude"]}
    read = read_recipe(tmp_path / "recipe.yaml")
    photos = UserPhotos(read.overruled({"data_dir": changes["data_dir"]}))
    assert len(photos.adapt("angler")) == 9
    assert photos.outputs(CLASSES) == {wordnet: n for n, wordnet in enumerate(ids)}
    run_image_recipe(read, 0, 4, changes)
    assert len(results(tmp_path / "exp", "angler")) > 4


def test_imagenette_is_not_downloaded_to_a_folder_of_another_name(tmp_path, monkeypatch, capsys):
    from recipes.imagenette import download

    monkeypatch.setattr("sys.argv", ["download", str(tmp_path / "other")])
    with pytest.raises(SystemExit):
        download.main()
    assert "expected a folder called imagenette2-320" in capsys.readouterr().err
    for part in ("train", "val"):
        (tmp_path / "there" / part).mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["download", str(tmp_path / "there")])
    download.main()  # what is there is left alone
