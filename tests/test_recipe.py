from pathlib import Path

import pytest
import yaml

from fpspeech.pruning import PruningConfig, PruningError
from fpspeech.recipe import read_recipe
from fpspeech.recipe_file import RecipeError
from fpspeech.user_photos import match_classes

ROOT = Path(__file__).parent.parent
GOOD = {
    "model": "microsoft/resnet-18",
    "photos": {"folder": "photos"},
    "users": {"anna": {"classes": ["cat", "dog"]}},
}


def write(folder: Path, changes: dict | None = None, without: str = "") -> Path:
    content = {**GOOD, **(changes or {})}
    content.pop(without, None)
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_only_what_the_file_says_is_set(tmp_path):
    from fpspeech.config import Config

    recipe = read_recipe(write(tmp_path))
    # Every 4th row of a picture is no sample of it, so pictures have a stride of their own.
    assert recipe.config() == Config(pruning=PruningConfig(product_stride=1))
    recipe = read_recipe(
        write(tmp_path, {"pruning": {"sparsity": 0.5, "score": "wanda"}, "batch_norm": "keep"})
    )
    assert recipe.config().pruning.sparsity == 0.5
    assert recipe.config().batch_norm == "keep"
    changed = recipe.config(sparsity=0.25, score=None)
    assert (changed.pruning.sparsity, changed.pruning.score) == (0.25, "wanda")
    assert read_recipe(write(tmp_path, {"seed": 3})).config().pruning.seed == 3


def test_numbers_are_names_where_names_are_meant(tmp_path):
    recipe = read_recipe(write(tmp_path, {"users": {7: {"classes": [1, 2]}}, "outputs": {1: 2}}))
    assert recipe.user("7").classes == ("1", "2")
    assert recipe.outputs == {"1": "2"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": "x"}, r"modle: no such key \(did you mean 'model'\?\)"),
        ({"pruning": {"sparcity": 0.5}}, r"pruning.sparcity: no such key \(did you mean 'spars"),
        ({"pruning": {"sparsity": "half"}}, "pruning.sparsity: expected a valid number, found 'h"),
        ({"photos": {"foldr": "x"}}, r"photos.foldr: no such key \(did you mean 'folder'"),
        ({"photos": {}}, "photos: expected either folder or dataset"),
        ({"photos": {"dataset": "a/b"}}, "photos: expected the split of the dataset"),
        ({"photos": {"folder": "a", "split": "b"}}, "photos: split belongs to a dataset"),
        ({"test": {"folder": "b"}}, "either photos, split by test_share, or adapt and test"),
        ({"test_share": 1.5}, "test_share: expected less than 1, found 1.5"),
        ({"users": {}}, "users: .*at least 1"),
        ({"users": {"anna": {"classes": 0}}}, "users.anna.classes: expected names of classes"),
        ({"users": {"anna": {"classes": []}}}, "users.anna.classes: expected names of classes"),
        ({"users": {"anna": {"clases": 3}}}, r"users.anna.clases: no such key \(did you mean 'cl"),
        ({"users": {"anna": {}}}, "users.anna: expected classes"),
        ({"users": {"anna": {"classes": ["a"], "draw": 1}}}, "users.anna: draw goes with a number"),
        ({"batch_norm": "re-estimate"}, "batch_norm: expected 'match' or 'keep', found 're-est"),
        ({"outputs": "sorted"}, "outputs: expected {class: label of the model} or in_order"),
        ({"batch_size": "many"}, "batch_size: expected a valid integer, found 'many'"),
    ],
)
def test_errors_name_the_file_the_key_and_what_was_found(tmp_path, changes, message):
    path = write(tmp_path, changes)
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(path)
    assert all(line.startswith(f"{path}: ") for line in str(caught.value).splitlines())


def test_all_errors_come_at_once(tmp_path):
    with pytest.raises(RecipeError) as caught:
        read_recipe(write(tmp_path, {"pruning": {"scor": "x"}, "seed": "x"}, without="model"))
    assert str(caught.value).count("\n") == 2
    assert "model: expected this key, found none" in str(caught.value)


def test_values_out_of_range_are_refused_by_the_core(tmp_path):
    recipe = read_recipe(write(tmp_path, {"pruning": {"sparsity": 70}}))
    with pytest.raises(PruningError, match=r"did you mean 0.7"):
        recipe.config()


def test_a_file_that_is_no_recipe_says_so(tmp_path):
    path = tmp_path / "mine.yaml"
    with pytest.raises(RecipeError, match="does not exist"):
        read_recipe(path)
    path.write_text("model: [x")
    with pytest.raises(RecipeError, match="no YAML file"):
        read_recipe(path)
    path.write_text("- model")
    with pytest.raises(RecipeError, match="found list"):
        read_recipe(path)


def test_an_unknown_user_gets_the_nearest_name(tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'anna'"):
        read_recipe(write(tmp_path)).user("ana")


IMAGE_RECIPES = [
    path
    for name in ("digits", "imagenet", "imagenette")
    for path in sorted(ROOT.glob(f"recipes/{name}/*.yaml"))
]


@pytest.mark.parametrize("path", IMAGE_RECIPES, ids=lambda path: path.name)
def test_the_image_recipes_of_the_repository_are_valid(path):
    recipe = read_recipe(path)
    recipe.config()
    assert recipe.users


def test_classes_find_their_outputs_by_name_or_by_a_synonym():
    labels = ["tench, Tinca tinca", "gas pump, petrol pump", "crane", "crane, bird", "n07"]
    assert match_classes(["n07", "tench", "gas pump"], labels, {}) == {
        "n07": 4,
        "tench": 0,
        "gas pump": 1,
    }
    assert match_classes(["crane"], labels, {}) == {"crane": 2}  # the whole label comes first
    assert match_classes(["n1"], labels, {"n1": "crane, bird"}) == {"n1": 3}
    with pytest.raises(ValueError, match="'trout' of the photos matches 0"):
        match_classes(["trout"], labels, {})
    with pytest.raises(ValueError, match="matches 2"):
        match_classes(["pump"], ["oil, pump", "gas, pump"], {})
