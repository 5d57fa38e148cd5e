"""The stages for photos on a tiny ResNet: whole runs, second runs, against brute force, errors."""

import json
from pathlib import Path

import pytest
import yaml
from tiny_resnet import CLASSES, write_photos, write_tiny_resnet

from fpspeech.cli import main
from fpspeech.image_report import image_rows, image_table
from fpspeech.image_results import (
    DENSE_SYSTEM,
    OWN,
    ImageResult,
    ImageSystem,
    read_image_result,
    write_image_result,
)
from fpspeech.image_stages import run_image_recipe
from fpspeech.models import load_image_model
from fpspeech.personal import Personal
from fpspeech.recipe import Recipe
from fpspeech.recipe_file import RecipeError
from fpspeech.results import ResultsError


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    write_photos(folder / "data" / "photos", each=6)
    write_tiny_resnet(folder / "model")
    return folder


@pytest.fixture
def content(place, tmp_path, monkeypatch) -> dict:
    monkeypatch.chdir(tmp_path)
    return {
        "model": str(place / "model"),
        "data_dir": str(place / "data"),
        "photos": {"folder": "photos"},
        "users": {"anna": {"classes": ["ant", "bee"]}, "ben": {"classes": ["cat", "dog"]}},
        "forgetting_photos": 4,
        "pruning": {"score": "wanda", "update": "none"},
        "batch_size": 4,
        "exp": "exp",
        "sparsity": [0.3, 0.5],
        "methods": ["magnitude"],
    }


def test_a_recipe_runs_to_a_table_and_again_without_work(content, tmp_path, monkeypatch, capsys):
    Path("recipe.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit) as end:
        main(["run", "recipe.yaml"])
    assert not end.value.code
    out = capsys.readouterr().out
    assert out == Path("exp/report/overall.md").read_text()
    assert "| wanda | own photos | match |" in out
    lines = [json.loads(line) for line in Path("exp/manifest.jsonl").read_text().splitlines()]
    adapt = {line["id"] for line in lines if line["split"] == "adapt"}
    test = {line["id"] for line in lines if line["split"] == "test"}
    assert len(adapt) == len(test) == 12
    assert not adapt & test
    before = {path: path.stat().st_mtime_ns for path in Path("exp/results").rglob("*.json")}
    assert len(before) == 2 * (1 + 2 * (2 + 2 + 2 + 2))

    def never(*arguments, **named):
        raise AssertionError("everything is there: no model needs to be loaded")

    monkeypatch.setattr("fpspeech.image_stages.load_image_model", never)
    with pytest.raises(SystemExit):
        main(["run", "recipe.yaml"])
    assert capsys.readouterr().out == out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_results_are_what_the_personal_model_answers(content, place):
    run_image_recipe(Recipe.model_validate(content), 0, 2)
    model = load_image_model(place / "model")
    lines = [json.loads(line) for line in Path("exp/manifest.jsonl").read_text().splitlines()]
    mine = [line for line in lines if (line["user"], line["split"]) == ("anna", "test")]
    from PIL import Image

    def answers(among: list[int]) -> tuple[int, ...]:
        found = []
        for line in mine:
            image = Image.open(place / "data" / "photos" / line["id"]).convert("RGB")
            logits = model.logits([image])[0]
            found.append(max(among, key=lambda number: float(logits[number])))
        return tuple(found)

    everything, few = list(range(len(CLASSES))), [CLASSES.index(each) for each in ("ant", "bee")]
    dense = read_image_result(Path("exp/results/anna/dense"))
    assert dense.labels == tuple(CLASSES.index(line["label"]) for line in mine)
    assert dense.among_all == answers(everything)
    assert dense.among_user == answers(few)
    assert len(dense.other_labels) == 4
    assert not set(dense.other_labels) & set(few)
    personal = Personal.load(Path("exp/personal/anna/sparsity-0.5"))
    system = ImageSystem("wanda", OWN, "match", 0.5)
    pruned = read_image_result(Path("exp/results/anna") / system.folder_name)
    with personal.apply(model):
        assert pruned.among_all == answers(everything)
        assert pruned.among_user == answers(few)
    assert pruned.reached == personal.report["sparsity"]


def test_a_user_is_looked_at_once_for_all_sparsities(content, monkeypatch):
    from fpspeech import image_stages

    looked = []
    look_at = image_stages.look_at

    def counted(model, selection, photos, **named):
        looked.append(len(photos))
        return look_at(model, selection, photos, **named)

    monkeypatch.setattr(image_stages, "look_at", counted)
    run_image_recipe(Recipe.model_validate(content), 0, 2)
    assert looked == [6, 6]


def test_users_and_sparsities_add_up(content):
    recipe = Recipe.model_validate(content)
    run_image_recipe(recipe, 0, 2, {"users": ["ben"], "sparsity": [0.5]})
    assert [each.name for each in Path("exp/personal").iterdir()] == ["ben"]
    run_image_recipe(recipe, 1, 4, {"users": ["ben"]})
    rows = json.loads(Path("exp/report/users.json").read_text())
    assert {row["user"] for row in rows} == {"ben"}
    with pytest.raises(RecipeError, match=r"results/anna/dense: expected a result.*run stage 1"):
        run_image_recipe(recipe, 4, 4)


class FakeHub:
    def __init__(self):
        self.uploads = []

    def create_repo(self, repo_id, *, private, exist_ok):
        assert private

    def upload_folder(self, *, repo_id, folder_path, path_in_repo):
        self.uploads.append(path_in_repo)


def test_pushing_is_off_by_default_and_names_nobody(content):
    hub = FakeHub()
    run_image_recipe(Recipe.model_validate(content), 0, 0, hub=hub)
    run_image_recipe(Recipe.model_validate(content), 5, 5, hub=hub)
    assert not hub.uploads
    recipe = Recipe.model_validate(content | {"push": "me/models"})
    run_image_recipe(recipe, 2, 2)
    run_image_recipe(recipe, 5, 5, hub=hub)
    assert len(hub.uploads) == 4
    assert hub.uploads[0] == "user-001/sparsity-0.3"


def test_errors_say_what_to_do(content, place, tmp_path):
    recipe = Recipe.model_validate(content)
    with pytest.raises(RecipeError, match=r"manifest\.jsonl does not exist: run stage 0"):
        run_image_recipe(recipe, 1, 1)
    with pytest.raises(RecipeError, match=r"no user 'ana' .did you mean 'anna'"):
        run_image_recipe(recipe, 0, 0, {"users": ["ana"]})
    with pytest.raises(RecipeError, match=r"^command line: sparsity: expected 0\.5 once"):
        run_image_recipe(recipe, 0, 0, {"sparsity": [0.5, 0.5]})
    with pytest.raises(RecipeError, match="give exp, or --exp"):
        run_image_recipe(Recipe.model_validate(content | {"exp": None}), 0, 0)
    run_image_recipe(recipe, 0, 1)
    with pytest.raises(RecipeError, match="holds an experiment whose seed is 0"):
        run_image_recipe(Recipe.model_validate(content | {"seed": 1}), 1, 1)
    other = write_tiny_resnet(tmp_path / "other", "bottleneck")
    with pytest.raises(RecipeError, match=r"whose model is 'model .SHA-256"):
        run_image_recipe(recipe, 1, 1, {"model": str(other)})
    Path("recipe.yaml").write_text(yaml.safe_dump(content))


def test_a_command_for_photos_names_users(content, capsys):
    Path("recipe.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit) as end:
        main(["run", "recipe.yaml", "--speaker", "anna"])
    assert end.value.code == 1
    assert "name users with --user" in " ".join(capsys.readouterr().err.split())


def result(user: str, system: ImageSystem, right: list[int]) -> ImageResult:
    """Photos of class 0, answered 0 or 1; among the user's classes always right."""
    zeros = (0,) * len(right)
    answers = tuple(1 - each for each in right)
    return ImageResult(user, system, system.sparsity, 3, (0, 2), zeros, answers, zeros)


def test_tables_by_hand(tmp_path):
    pruned = ImageSystem("wanda", OWN, "match", 0.5)
    results = [
        result("anna", DENSE_SYSTEM, [1, 1, 1, 0]),
        result("anna", pruned, [1, 0, 0, 0]),
        result("ben", DENSE_SYSTEM, [1, 1, 1, 1]),
        result("ben", pruned, [1, 1, 1, 0]),
    ]
    write_image_result(tmp_path / "x", results[1])
    assert read_image_result(tmp_path / "x") == results[1]
    rows = image_rows(results)
    assert [row["accuracy_all_classes"] for row in rows] == [0.75, 0.25, 1.0, 0.75]
    assert [row["change_all_classes"] for row in rows] == [0.0, -0.5, 0.0, -0.25]
    assert rows[1]["change_all_low"] <= -0.5 <= rows[1]["change_all_high"] <= 0
    assert rows[1]["probability_better_all"] < 0.5
    assert [row["accuracy_user_classes"] for row in rows] == [1.0] * 4
    table = image_table(results)
    assert "| dense |  |  | 87.5 [" in table
    assert "| wanda | own photos | match | 50.0 [" in table
    # Without one of the users there is no number over all of them.
    assert "| wanda | own photos | match |  |  |" in image_table(results[:3])
    with pytest.raises(ResultsError, match="ben: dense was not measured"):
        image_rows([results[0], results[3]])
    with pytest.raises(ResultsError, match="measured on different photos"):
        image_rows([results[0], result("anna", pruned, [1])])
    (tmp_path / "x" / "result.json").write_text('{"user": "anna"}')
    with pytest.raises(ResultsError, match=r"x/result\.json cannot be read"):
        read_image_result(tmp_path / "x")
