"""A user's photos from end to end: adapting, measuring, and that no label is read on the way."""

import ast
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_resnet import CLASSES, picture, write_photos, write_tiny_resnet

import fpspeech
from fpspeech import Config, PruningConfig
from fpspeech.corpora.images import Photo, PhotosError, decode, photos_in_folder, without_labels
from fpspeech.evaluate_images import evaluate_photos
from fpspeech.images import personalize_photos
from fpspeech.looking import Watcher
from fpspeech.models import load_image_model
from fpspeech.personal import Personal
from fpspeech.pruning import prune
from fpspeech.recipe import Recipe
from fpspeech.user_photos import UserPhotos

OUTPUTS = {name: number for number, name in enumerate(CLASSES)}
CONFIG = Config(pruning=PruningConfig(sparsity=0.5), batch_size=5)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, photos and a recipe."""
    folder = tmp_path_factory.mktemp("images")
    write_tiny_resnet(folder / "model")
    write_photos(folder / "photos")
    recipe = {
        "model": str(folder / "model"),
        "photos": {"folder": str(folder / "photos")},
        "users": {
            "anna": {"classes": ["ant", "bee"]},
            "ben": {"classes": ["bee", "cat", "dog"]},
            "cleo": {"classes": 4, "draw": 1},
        },
        "forgetting_photos": 5,
        "pruning": {"sparsity": 0.5},
        "batch_size": 4,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def model(place):
    return load_image_model(place / "model")


@pytest.fixture(scope="module")
def photos(place):
    return UserPhotos(Recipe.model_validate(yaml.safe_load((place / "recipe.yaml").read_text())))


def same(one: Personal, other: Personal) -> bool:
    pairs = [(one.masks, other.masks), (one.values, other.values), (one.kept, other.kept)]
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs
    )


class Unlabelled(Photo):
    """A photo that cannot be asked for its label."""

    def __getattribute__(self, name: str):
        assert name != "label", "somebody read a label"
        return super().__getattribute__(name)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(labels=st.lists(st.sampled_from([*CLASSES, None]), min_size=6, max_size=6))
def test_labels_do_not_change_a_bit_and_are_never_read(place, model, photos, labels):
    adapt = photos.adapt("anna")
    plain = personalize_photos(model, adapt, CONFIG)
    wrong = [replace(photo, label=label) for photo, label in zip(adapt, labels, strict=True)]
    assert same(personalize_photos(model, wrong, CONFIG), plain)
    blind = [Unlabelled(photo.id, photo.content) for photo in adapt]
    assert same(personalize_photos(model, blind, CONFIG), plain)


def test_the_source_of_adapting_reads_no_label():
    package = Path(fpspeech.__file__).parent
    for name in ("images.py", "looking.py", "models/resnet.py", "pruning/update.py"):
        attributes = {
            node.attr
            for node in ast.walk(ast.parse((package / name).read_text()))
            if isinstance(node, ast.Attribute)
        }
        assert "label" not in attributes, name


def test_users_adapt_and_test_on_other_photos_of_their_classes(photos):
    for user in photos.recipe.users:
        adapt, test = photos.adapt(user), photos.test(user)
        assert adapt
        assert all(photo.label is None for photo in adapt)
        assert {photo.label for photo in test} == set(photos.classes_of(user))
        assert not {photo.id for photo in adapt} & {photo.id for photo in test}
        strange = photos.control(user, len(adapt), with_own_classes=False)
        assert strange
        mixed = photos.control(user, len(adapt), with_own_classes=True)
        assert len(mixed) == len(adapt)
        assert {photo.id for photo in mixed} & {photo.id for photo in adapt}
        assert not {photo.id for photo in mixed} & {photo.id for photo in test}
        assert all(photo.label is None for photo in mixed)
        assert all(photo.label is None for photo in strange)
        assert not {photo.id for photo in strange} & {photo.id for photo in [*adapt, *test]}
        others = photos.others(user)
        assert len(others) == 5
        assert not {photo.label for photo in others} & set(photos.classes_of(user))
    assert len(photos.classes_of("cleo")) == 4


def test_the_model_is_left_as_it_was_and_the_same_photos_give_the_same_bits(model, photos):
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    first = personalize_photos(model, photos.adapt("ben"), CONFIG)
    state = model.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert same(personalize_photos(model, photos.adapt("ben"), CONFIG), first)
    assert first.report["sparsity"] == pytest.approx(0.5, abs=0.02)
    kept = personalize_photos(model, photos.adapt("ben"), replace(CONFIG, batch_norm="keep"))
    assert kept.values == {}
    assert first.report["batch_norms_matched"] > 3


def test_photos_that_cannot_be_used_and_copies_are_skipped_with_a_line_each(
    model, photos, tmp_path
):
    adapt = photos.adapt("anna")
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    more = [
        Photo("torn", tmp_path / "torn.jpg"),
        *adapt,
        Photo("again", adapt[0].content),
        Photo("gone", tmp_path / "gone.jpg"),
    ]
    lines = []
    seen = []
    watcher = Watcher(seen=seen.append, skipped=lambda skipped, line: lines.append(line))
    personal = personalize_photos(model, more, CONFIG, watcher=watcher)
    assert same(personal, personalize_photos(model, adapt, CONFIG))
    assert personal.report["skipped"] == {
        "not a picture": 1,
        "same photo twice": 1,
        "missing": 1,
    }
    assert len(lines) == 3
    assert sum(seen) == len(adapt)
    with pytest.raises(PhotosError, match="no photo to adapt on: 1 not a picture"):
        personalize_photos(model, more[:1], CONFIG)


def test_four_numbers_by_brute_force(model, photos):
    personal = personalize_photos(model, photos.adapt("ben"), CONFIG)
    test, classes = photos.test("ben"), photos.classes_of("ben")
    found = evaluate_photos(model, personal, test, classes, OUTPUTS, others=photos.others("ben"))

    def rates():
        from fpspeech.corpora.images import decode

        everything = few = 0
        for photo in test:
            logits = model.logits([decode(photo).image])[0]
            right = OUTPUTS[photo.label]
            everything += int(logits.argmax()) == right
            few += max(classes, key=lambda name: logits[OUTPUTS[name]]) == photo.label
        return everything / len(test), few / len(test)

    assert (found.numbers.dense_all.rate, found.numbers.dense_user.rate) == rates()
    with personal.apply(model):
        assert (found.numbers.pruned_all.rate, found.numbers.pruned_user.rate) == rates()
    assert found.photos == len(test)
    assert found.forgetting.dense.right.size == 5
    assert found.forgetting.dense.among == len(CLASSES)


def test_photos_it_was_adapted_on_are_never_tested_on_told_by_their_content(model, photos, place):
    personal = personalize_photos(model, photos.adapt("anna"), CONFIG)
    everything = [p for p in photos_in_folder(place / "photos") if p.label in ("ant", "bee")]
    renamed = [replace(photo, id=f"renamed {photo.id}") for photo in everything]
    found = evaluate_photos(model, personal, renamed, ["ant", "bee"], OUTPUTS)
    assert found.already_seen == len(photos.adapt("anna")) == 6
    assert found.photos == 6
    adapted = [p for p in everything if p.id in {photo.id for photo in photos.adapt("anna")}]
    with pytest.raises(PhotosError, match="6 were used to adapt"):
        evaluate_photos(model, personal, adapted, ["ant", "bee"], OUTPUTS)


def test_the_user_is_found_by_the_content_of_the_photos(model, photos):
    for user in photos.recipe.users:
        personal = personalize_photos(model, photos.adapt(user), CONFIG)
        assert photos.find(personal) == user
    stranger = personalize_photos(model, [Photo("x", _png(picture(2, 99)))], CONFIG)
    assert photos.find(stranger) is None


def _png(image) -> bytes:
    from io import BytesIO

    written = BytesIO()
    image.save(written, "png")
    return written.getvalue()


def test_photos_from_a_dataset_give_the_same_personal_model(model, photos, place):
    from_dataset = UserPhotos(
        photos.recipe.model_copy(
            update={
                "photos": photos.recipe.photos.model_validate(
                    {"dataset": str(place / "photos"), "split": "train"}
                )
            }
        )
    )
    assert from_dataset.classes == photos.classes == CLASSES
    assert from_dataset.outputs(CLASSES) == OUTPUTS
    assert {photo.label for photo in from_dataset.test("ben")} == {"bee", "cat", "dog"}
    assert len(from_dataset.others("ben")) == 5
    adapt = from_dataset.adapt("ben")
    assert all(photo.label is None for photo in adapt)
    personal = personalize_photos(model, adapt, CONFIG)
    assert evaluate_photos(
        model, personal, from_dataset.test("ben"), ["bee", "cat", "dog"], OUTPUTS
    ).photos == len(adapt)


def test_apart_sources_a_limit_and_a_folder_of_the_users_own(model, place, tmp_path):
    write_photos(tmp_path / "train", each=4)
    own = tmp_path / "own"
    own.mkdir()
    for number in range(3):
        picture(1, 50 + number).save(own / f"{number}.png")
    recipe = Recipe.model_validate(
        {
            "model": str(place / "model"),
            "adapt": {"folder": str(tmp_path / "train"), "limit_per_class": 2},
            "test": {"folder": str(place / "photos")},
            "outputs": "in_order",
            "users": {
                "anna": {"classes": ["ant", "bee"]},
                "mia": {"photos": str(own), "classes": ["bee"]},
                "nobody": {"photos": str(own)},
            },
        }
    )
    found = UserPhotos(recipe)
    assert len(found.adapt("anna")) == 4
    assert len(found.test("anna")) == 12
    assert [photo.id for photo in found.adapt("mia")] == ["0.png", "1.png", "2.png"]
    assert {photo.label for photo in found.test("mia")} == {"bee"}
    assert found.outputs(CLASSES) == OUTPUTS
    with pytest.raises(ValueError, match="6 and 7"):
        found.outputs([*CLASSES, "gnu"])
    with pytest.raises(ValueError, match="no classes in the recipe"):
        found.test("nobody")


def test_the_commands_print_the_four_rows(place, tmp_path, capsys):
    recipe, out = place / "recipe.yaml", tmp_path / "anna"
    code, text, _ = run(capsys, "personalize", "--recipe", recipe, "--user", "anna", "--out", out)
    assert code == 0
    assert "no labels" in text
    assert f"fpspeech evaluate {out} --recipe {recipe} --user anna" in text.replace("\n", "")
    code, text, _ = run(capsys, "evaluate", out, "--recipe", recipe)
    assert code == 0
    rows = [line for line in text.splitlines() if "of the user" in line]
    assert [("dense" in row, "personal" in row) for row in rows] == [
        (True, False),
        (False, True),
    ] * 2
    assert ["all 6 classes" in row for row in rows] == [True, True, False, False]
    assert "not a gain of pruning" in text.replace("\n", " ")
    code, text, _ = run(capsys, "evaluate", out, "--recipe", recipe, "--user", "anna", "--json")
    value = json.loads(text)
    for name in ("dense_all", "pruned_all", "dense_user", "pruned_user"):
        found = value[f"{name}_classes"]
        assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]
        assert found["among_classes"] == (6 if name.endswith("all") else 2)
    assert value["other_classes"]["photos"] == 5
    code, _, _ = run(capsys, "merge", out, "--out", tmp_path / "merged", "--model", place / "model")
    assert code == 0
    assert load_image_model(tmp_path / "merged").labels == CLASSES


def test_what_stands_on_the_command_line_overrules_the_recipe(place, tmp_path, capsys):
    recipe = place / "recipe.yaml"
    code, text, _ = run(
        capsys, "personalize", "--recipe", recipe, "--user", "ben", "--out", tmp_path / "ben",
        "--sparsity", "0.25", "--score", "magnitude", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(text)["sparsity"] == pytest.approx(0.25, abs=0.02)
    assert Personal.load(tmp_path / "ben").config.pruning.score == "magnitude"
    code, text, _ = run(capsys, "personalize", "--recipe", recipe, "--dry-run", "--json")
    assert json.loads(text)["prunable_weights"] > 0


def test_wrong_usage_is_one_message(place, tmp_path, capsys):
    recipe = place / "recipe.yaml"
    cases = [
        (["personalize", "--recipe", recipe, "--user", "ana"], 1, "did you mean 'anna'"),
        (["personalize", "--recipe", recipe], 1, "say which one with --user"),
        (["personalize", "--user", "anna"], 2, "goes with --recipe"),
        (["personalize", "--recipe", recipe, "--speaker", "x"], 2, "no effect with --recipe"),
        (["personalize", "--recipe", tmp_path / "no.yaml"], 1, "does not exist"),
        (["evaluate", tmp_path, "--user", "anna"], 2, "goes with --recipe"),
        (["personalize", "--recipe", recipe, "--sparsity", "auto"], 2, "a share such as 0.7"),
        (["personalize", "--recipe", recipe, "--sparsity", "x"], 2, "expected a share such as"),
    ]
    for arguments, expected, message in cases:
        code, _, errors = run(capsys, *arguments)
        assert code == expected, arguments
        assert message in errors.replace("\n", " "), arguments
    run(capsys, "personalize", "--recipe", recipe, "--user", "anna", "--out", tmp_path / "anna")
    code, _, errors = run(capsys, "evaluate", tmp_path / "anna")
    assert code == 2
    assert "--recipe" in errors
    code, _, errors = run(capsys, "merge", tmp_path / "anna", "--out", tmp_path / "merged")
    assert code == 1
    assert "--model" in errors


def test_a_scanned_users_folder_needs_no_classes(place, tmp_path, capsys):
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(place / "photos" / "ant" / "0.jpg", own)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"model": str(place / "model"), "users": {"me": {"photos": str(own)}}})
    )
    code, text, _ = run(capsys, "personalize", "--recipe", recipe, "--out", tmp_path / "me")
    assert code == 0
    assert "1 photos" in text


def test_order_of_photos_changes_sums_by_rounding_alone(model, photos):
    adapt = photos.adapt("ben")
    shuffled = random.Random(0).sample(adapt, len(adapt))
    every_position = replace(CONFIG.pruning, product_stride=1)  # else the order draws others
    keep = replace(CONFIG, batch_norm="keep", pruning=every_position)
    one, other = (personalize_photos(model, each, keep) for each in (adapt, shuffled))
    differing = sum(int((one.masks[name] ^ other.masks[name]).sum()) for name in one.masks)
    assert differing <= 0.001 * sum(mask.numel() for mask in one.masks.values())
    assert np.isfinite(differing)
    assert without_labels(adapt) == adapt


def test_in_sequential_order_it_is_what_the_core_makes_of_the_same_batches(model, photos):
    pruning = replace(CONFIG.pruning, order="sequential", product_stride=1)
    config = replace(CONFIG, pruning=pruning, batch_norm="keep")
    found = personalize_photos(model, photos.adapt("anna"), config)
    pictures = [decode(photo).image for photo in photos.adapt("anna")]
    batches = [model.preprocess(pictures[n : n + 5]) for n in range(0, len(pictures), 5)]
    expected = prune(model.network, batches, pruning, exclude=model.exclusions)
    assert all(torch.equal(found.masks[name], mask) for name, mask in expected.masks.items())
    assert all(torch.equal(found.kept[name], kept) for name, kept in expected.kept.items())
    independent = personalize_photos(
        model, photos.adapt("anna"), replace(config, pruning=replace(pruning, order="independent"))
    )
    assert not same(found, independent)
