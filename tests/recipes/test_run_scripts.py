"""Every recipe folder: its script, its settings and its README say the same."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fpspeech.corpora import ManifestError, find_corpus
from fpspeech.recipe import read_recipe
from fpspeech.recipe_file import kind_of_recipe
from fpspeech.speech_recipe import read_speech_recipe

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(each.parent for each in ROOT.glob("recipes/*/run.sh"))
KINDS = {each.name: kind_of_recipe(each / f"{each.name}.yaml") for each in FOLDERS}
SPEECH = [name for name, kind in KINDS.items() if kind == "speech"]
PHOTOS = [name for name, kind in KINDS.items() if kind == "photos"]
CORPUS = {"demo": "folder", "fleurs": "hub"}  # of a recipe that is not called as its corpus

bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


def script(name: str, folder: Path, *arguments, **variables: str) -> subprocess.CompletedProcess:
    kept = {key: value for key, value in os.environ.items() if key != "FPSPEECH_DATA"}
    return subprocess.run(
        [str(ROOT / "recipes" / name / "run.sh"), *map(str, arguments)],
        cwd=folder,
        env=kept | {"PYTHON": sys.executable, "COLUMNS": "300"} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_these_are_all():
    assert set(PHOTOS) == {"digits", "imagenet", "imagenette"}
    assert len(SPEECH) == 12


@pytest.mark.parametrize("name", SPEECH)
def test_every_recipe_for_speech_can_be_read(name):
    recipe = read_speech_recipe(ROOT / "recipes" / name / f"{name}.yaml")
    assert recipe.corpus.name == CORPUS.get(name, name)
    assert recipe.push is None
    assert recipe.exp == f"exp/{name}"
    corpus = find_corpus(recipe.corpus.name)  # its options are known, though it is not here
    with pytest.raises(ManifestError) as caught:
        corpus.root("/nowhere", seed=0, **recipe.corpus.options)
    assert "expected options among" not in str(caught.value)
    require_modules(recipe.model_from, recipe.corpus.data_from)


@pytest.mark.parametrize("name", PHOTOS)
def test_every_recipe_for_photos_can_be_read(name):
    recipe = read_recipe(ROOT / "recipes" / name / f"{name}.yaml")
    recipe.config()
    assert recipe.users
    assert recipe.push is None
    assert recipe.exp == f"exp/{name}"
    require_modules(recipe.model_from, recipe.data_from)


def require_modules(*names: str | None) -> None:
    for name in names:
        assert name is None or (ROOT / f"{name.replace('.', '/')}.py").is_file()


@pytest.mark.parametrize("name", KINDS)
def test_scripts_are_short_and_strict_and_the_readme_says_how_to_run_them(name):
    folder = ROOT / "recipes" / name
    lines = (folder / "run.sh").read_text().splitlines()
    assert len(lines) + len((ROOT / "recipes" / "run_stages.sh").read_text().splitlines()) < 60
    assert "set -euo pipefail" in lines
    assert os.access(folder / "run.sh", os.X_OK)
    readme = (folder / "README.md").read_text()
    assert f"recipes/{name}/run.sh" in readme
    assert f"fpspeech run recipes/{name}/{name}.yaml" in " ".join(readme.split())


@bash
@pytest.mark.parametrize("name", KINDS)
def test_the_script_says_what_it_takes(tmp_path, name):
    done = script(name, tmp_path, "--help")
    assert done.returncode == 0, done.stderr
    who = "--speaker" if name in SPEECH else "--user"
    for word in ("--stage", "--stop-stage", who, "--model", "--sparsity", "--data-dir", "5 push"):
        assert word in done.stdout
    assert "set -euo" not in done.stdout
    assert not list(tmp_path.iterdir())


@bash
def test_the_script_runs_the_stages_asked_for(tmp_path, speech, tiny_group):
    where = ("--data-dir", speech, "--model", tiny_group, "--speaker", "ann")
    done = script("demo", tmp_path, *where, "--sparsity", 0.5, "--stop-stage", 1)
    assert done.returncode == 0, done.stderr
    assert "stage 1: dense" in done.stderr
    assert "stage 2" not in done.stderr
    exp = tmp_path / "exp" / "demo"
    assert (exp / "results" / "ann" / "dense" / "result.json").exists()
    assert not (exp / "personal").exists()


@bash
def test_the_script_fails_with_what_it_runs(tmp_path):
    done = script("librispeech", tmp_path, "--data-dir", "nowhere", "--stop-stage", 0)
    assert done.returncode == 1
    assert "openslr" in done.stderr
    assert "Traceback" not in done.stderr
    assert "done" not in done.stderr
    assert script("librispeech", tmp_path, "--no-such-option").returncode == 2
