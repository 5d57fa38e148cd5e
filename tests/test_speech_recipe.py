"""Reading recipes for speech: every mistake is named, with its file and key and what was meant."""

from pathlib import Path

import pytest
import yaml

from fpspeech.recipe_file import RecipeError
from fpspeech.speech_recipe import SpeechRecipe, read_speech_recipe


@pytest.fixture
def content() -> dict:
    return {
        "corpus": {"name": "librispeech"},
        "model": "openai/whisper-tiny.en",
        "exp": "exp",
        "sparsity": [0.5],
        "methods": ["obs+least_squares", "magnitude"],
    }


def write_yaml(folder: Path, content: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsities": [0.5]}, "sparsities: no such key .did you mean 'sparsity'..; the keys"),
        ({"corpus": {"name": "librispech"}}, "corpus.name: .*did you mean 'librispeech'"),
        ({"corpus": {"name": "fsdd", "data": "x"}}, "corpus.data: no such key .*'data_dir'"),
        (
            {"corpus": 3},
            "corpus: expected keys of its own .name, data_dir, download, data_from, opt.*found 3",
        ),
        ({"pruning": {"rigde": 1.0}}, "pruning.rigde: no such key .did you mean 'ridge'"),
        ({"sparsity": 0.5}, "sparsity: expected a valid list, found 0.5"),
        ({"sparsity": ["much"]}, "sparsity.0: expected a valid number, found 'much'"),
        ({"sparsity": [50.0]}, "expected 0 <= sparsity < 1, found 50; did you mean 0.5"),
        ({"methods": ["wandda"]}, "no score is named 'wandda'"),
        ({"methods": []}, "methods: "),
        ({"sparsity": [0.5, 0.3, 0.5]}, "sparsity: expected 0.5 once, found it 2 times"),
        ({"speakers": "anna"}, "speakers: expected all, or a list of names, found 'anna'"),
        ({"speakers": ["a", "a"]}, "speakers: expected 'a' once"),
        ({"language": "xx"}, "language: unknown language 'xx'"),
        (
            {"language": "de", "corpus": {"name": "voxpopuli", "options": {"language": "fr"}}},
            "agree",
        ),
        ({"model": None}, "model: expected a valid string, found None"),
        (
            {"model_from": "os"},
            "model_from: expected a module such as recipes.fsdd.train, found 'o",
        ),
        (
            {"corpus": {"name": "folder", "data_from": "recipes.demo.corpus"}},
            "corpus: data_from makes data_dir: say where that is",
        ),
    ],
)
def test_errors_name_the_file_the_key_and_the_nearest(tmp_path, content, change, message):
    path = write_yaml(tmp_path, content | change)
    with pytest.raises(RecipeError, match=message) as caught:
        read_speech_recipe(path)
    assert all(line.startswith(str(path)) for line in str(caught.value).splitlines())


def test_all_that_is_wrong_is_said_at_once(tmp_path, content):
    del content["model"]
    path = write_yaml(tmp_path, content | {"sed": 1, "seed": "x"})
    with pytest.raises(RecipeError) as caught:
        read_speech_recipe(path)
    text = str(caught.value)
    assert "model: expected this key, found none" in text
    assert "sed: no such key (did you mean 'seed'?)" in text
    assert "seed: expected a valid integer, found 'x'" in text


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match="does not exist"):
        read_speech_recipe(tmp_path / "none.yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text("a: [")
    with pytest.raises(RecipeError, match="no YAML file"):
        read_speech_recipe(path)
    path.write_text("just words")
    with pytest.raises(RecipeError, match="expected keys and values"):
        read_speech_recipe(path)


def test_wrong_values_on_the_command_line_are_not_blamed_on_the_file(content):
    with pytest.raises(RecipeError, match=r"^command line: .*expected 0 <= sparsity"):
        SpeechRecipe.model_validate(content).overruled({"sparsity": [2.0]})


def test_another_model_drops_the_revision_of_the_first(content):
    recipe = SpeechRecipe.model_validate(content | {"revision": "abc"})
    assert recipe.overruled({"model": "other"}).revision is None
    assert recipe.overruled({"model": None}).revision == "abc"
