"""Recipes for speech on a miniature LibriSpeech: whole runs, second runs, errors, scripts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from fpspeech.cli import main
from fpspeech.corpora import CORPORA, ManifestError, find_corpus, read_utterances
from fpspeech.personal import Personal
from fpspeech.recipe_file import RecipeError
from fpspeech.recipe_stages import corpus_options, run_recipe
from fpspeech.results import read_result
from fpspeech.speech_recipe import SpeechRecipe, read_speech_recipe

ROOT = Path(__file__).parent.parent
CORPUS_NAMES = ["librispeech", "speechocean762", "common_voice", "l2_arctic", "torgo", "uaspeech"]
CORPUS_NAMES += ["vctk", "speech_commands", "voxpopuli"]


def write_librispeech(root: Path) -> Path:
    """Speakers 11 and 12 with two chapters each; 13 said one thing only."""
    counter = 0
    for speaker, chapters in (("11", "12"), ("12", "34"), ("13", "5")):
        for chapter in chapters:
            folder = root / "test-other" / speaker / chapter
            folder.mkdir(parents=True)
            lines = []
            for number in range(1 if speaker == "13" else 3):
                counter += 1
                identity = f"{speaker}-{chapter}-{number:04d}"
                noise = np.random.default_rng(counter).standard_normal(8000 + 800 * counter)
                soundfile.write(folder / f"{identity}.flac", 0.1 * noise, 16_000)
                words = "(COUGH)" if number == 2 else "SECRET  WORDS"
                lines.append(f"{identity} {words}\n")
            (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def librispeech(tmp_path_factory) -> Path:
    return write_librispeech(tmp_path_factory.mktemp("data") / "LibriSpeech")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("FPSPEECH_DATA", raising=False)
    return tmp_path


@pytest.fixture
def content(librispeech, tiny_group) -> dict:
    return {
        "corpus": {"name": "librispeech", "data_dir": str(librispeech)},
        "model": str(tiny_group),
        "exp": "exp",
        "sparsity": [0.5],
        "methods": ["obs+least_squares", "magnitude"],
    }


def write_yaml(folder: Path, content: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def times(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_recipe_runs_from_the_corpus_to_a_table_and_again_without_work(
    capsys, here, content, monkeypatch
):
    path = write_yaml(here, content)
    main_code = run(capsys, "run", path)
    assert main_code[0] == 0
    assert "| all 2 | obs+least_squares | 50% |" in main_code[1]
    exp = here / "exp"
    for speaker in ("11", "12"):
        systems = ("another_speaker-", "dense", "magnitude-", "obs+least_squares-")
        names = sorted(each.name for each in (exp / "results" / speaker).iterdir())
        assert names == [f"{s}sparsity-0.5" if s.endswith("-") else s for s in systems]
        for name in names:
            result = read_result(exp / "results" / speaker / name)
            assert len(result.errors.utterances) == 2
            assert result.errors.empty_references == 1
            assert result.errors.words == 4
        personal = Personal.load(exp / "personal" / speaker / "sparsity-0.5")
        assert personal.report["sparsity"] == pytest.approx(0.5, abs=0.05)
    another = read_result(exp / "results" / "12" / "another_speaker-sparsity-0.5")
    assert another.facts["adapted_to"] == "11"
    assert not (exp / "results" / "13").exists(), "one utterance cannot be on both sides"
    report = (exp / "report" / "report.md").read_text()
    assert "2 with an empty reference" in report
    assert "whisper-normalizer" in report
    assert "secret" not in report.lower()
    assert sorted(each.name for each in (exp / "report").iterdir()) == [
        "overall.csv",
        "overall.json",
        "overall.md",
        "report.md",
        "speakers.csv",
        "speakers.json",
        "speakers.md",
    ]

    before = {p: t for p, t in times(exp).items() if "/report/" not in p}
    before.pop(str(exp / "settings.json"))

    def never(*arguments, **named):
        raise AssertionError("everything is there: no model needs to be loaded")

    monkeypatch.setattr("fpspeech.recipe_stages.load_speech_model", never)
    again = run(capsys, "run", path)
    assert again[:2] == main_code[:2]
    after = times(exp)
    assert {path: after[path] for path in before} == before
    assert (exp / "report" / "report.md").read_text() == report


def run(capsys, *arguments) -> tuple[int, str, str]:
    try:
        main([str(argument) for argument in arguments])
        code = 0
    except SystemExit as end:
        code = end.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_personal_models_hold_no_words_and_no_name(here, content):
    run_recipe(SpeechRecipe.model_validate(content), stop_stage=2, overrides={"speakers": ["11"]})
    files = [p for p in (here / "exp" / "personal").rglob("*") if p.is_file()]
    assert files
    for each in files:
        assert b"secret" not in each.read_bytes().lower()
        assert b"11-1" not in each.read_bytes()


def test_stages_speakers_and_sparsities_add_up(here, content):
    recipe = SpeechRecipe.model_validate(content)
    run_recipe(recipe, 0, 1)
    assert not (here / "exp" / "personal").exists()
    run_recipe(recipe, 2, 2, {"speakers": ["12"]})
    assert [each.name for each in (here / "exp" / "personal").iterdir()] == ["12"]
    run_recipe(recipe, 2, 2, {"speakers": ["12"], "sparsity": [0.3]})
    assert sorted(each.name for each in (here / "exp" / "personal" / "12").iterdir()) == [
        "sparsity-0.3",
        "sparsity-0.5",
    ]
    run_recipe(recipe, 4, 4, {"sparsity": [0.3, 0.5]})
    table = json.loads((here / "exp" / "report" / "overall.json").read_text())
    assert [(line["method"], line["sparsity"], line["speakers"]) for line in table] == [
        ("dense", 0.0, 1),  # of speaker 12: the same speakers on every line
        ("obs+least_squares", 0.3, 1),
        ("obs+least_squares", 0.5, 1),
    ]


def test_a_half_written_result_is_made_again(here, content):
    recipe = SpeechRecipe.model_validate(content)
    run_recipe(recipe, 0, 1)
    folder = here / "exp" / "results" / "11" / "dense"
    (folder / "result.json").unlink()
    run_recipe(recipe, 1, 1)
    assert read_result(folder).speaker == "11"


def test_stages_that_lack_what_comes_before_say_so(here, content):
    recipe = SpeechRecipe.model_validate(content)
    with pytest.raises(RecipeError, match=r"manifest\.jsonl does not exist: run stage 0"):
        run_recipe(recipe, 1, 1)
    run_recipe(recipe, 0, 0)
    with pytest.raises(RecipeError, match="expected a result, found none: run stage 1"):
        run_recipe(recipe, 4, 4)
    with pytest.raises(RecipeError, match="found 3 to 2"):
        run_recipe(recipe, 3, 2)
    with pytest.raises(RecipeError, match="'13' has nothing to adapt or to test on"):
        run_recipe(recipe, 1, 1, {"speakers": ["13"]})
    with pytest.raises(RecipeError, match=r"'99' is none in .*expected speakers among 11, 12"):
        run_recipe(recipe, 1, 1, {"speakers": ["99"]})


def test_results_of_two_experiments_never_mix(here, content, tiny_layer):
    recipe = SpeechRecipe.model_validate(content)
    run_recipe(recipe, 0, 1)
    with pytest.raises(RecipeError, match=r"whose model is 'tiny-group.*--exp, or remove"):
        run_recipe(recipe, 1, 1, {"model": str(tiny_layer)})
    with pytest.raises(RecipeError, match="whose seed is 0"):
        run_recipe(recipe, 0, 1, {"seed": 1})
    with pytest.raises(RecipeError, match="whose personal method is"):
        run_recipe(recipe, 0, 1, {"methods": ["random"]})


def test_a_wrong_data_dir_can_be_mended(here, content, librispeech):
    content["corpus"]["data_dir"] = "nowhere"
    recipe = SpeechRecipe.model_validate(content)
    with pytest.raises(ManifestError, match=r"LibriSpeech.*nowhere.*openslr"):
        run_recipe(recipe, 0, 0)
    run_recipe(recipe, 0, 0, {"data_dir": str(librispeech)})
    assert len(read_utterances(here / "exp" / "manifest.jsonl")) == 13


def test_downloads_only_where_asked_and_nobody_said_where_it_is(
    here, content, librispeech, monkeypatch
):
    asked = []

    def download(target: Path) -> Path:
        asked.append(target)
        return librispeech

    corpus = find_corpus("librispeech")
    monkeypatch.setitem(
        CORPORA, "librispeech", type(corpus)(**vars(corpus) | {"download": download})
    )
    content["corpus"] = {"name": "librispeech"}
    with pytest.raises(ManifestError, match="openslr"):
        run_recipe(SpeechRecipe.model_validate(content), 0, 0)
    content["corpus"] |= {"download": True}
    recipe = SpeechRecipe.model_validate(content)
    with pytest.raises(ManifestError, match="openslr"):
        run_recipe(recipe, 0, 0, {"data_dir": "typing-error"})
    assert not asked
    run_recipe(recipe, 0, 0)
    assert asked == [Path("exp/corpus")]


def test_a_speaker_without_words_is_left_out(here, content, tmp_path):
    root = write_librispeech(tmp_path / "LibriSpeech")
    for transcript in root.glob("test-other/12/*/*.trans.txt"):
        transcript.write_text(transcript.read_text().replace("SECRET  WORDS", "(LAUGH)"))
    content["corpus"]["data_dir"] = str(root)
    said: list[str] = []
    run_recipe(SpeechRecipe.model_validate(content), 0, 3, say=said.append)
    assert [each.name for each in Path("exp/results").iterdir()] == ["11"]
    assert any("2 speakers left out" in line for line in said)
    assert any("one speaker alone" in line for line in said)


def test_names_of_speakers_never_lead_out_of_the_folder(here, content, librispeech):
    rows = []
    for each in CORPORA["librispeech"].utterances(librispeech):
        speaker = {"11": "../../etc", "12": ".."}.get(each.speaker, each.speaker)
        rows.append({"id": each.id, "audio": str(each.audio), "speaker": speaker})
        rows[-1] |= {"text": each.text, "split": each.split}
    Path("exp").mkdir()
    Path("exp/manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_recipe(SpeechRecipe.model_validate(content), 1, 1)
    assert sorted(each.name for each in Path("exp/results").iterdir()) == [
        "%2E.",
        "%2E.%2F..%2Fetc",
    ]
    assert sorted(each.name for each in here.iterdir()) == ["exp"]


class FakeHub:
    def __init__(self):
        self.repositories = []
        self.uploads = []

    def create_repo(self, repo_id, *, private, exist_ok):
        self.repositories.append((repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, path_in_repo):
        assert (folder_path / "fpspeech.json").exists()
        self.uploads.append((repo_id, path_in_repo))


def test_pushing_is_off_by_default(here, content):
    hub = FakeHub()
    recipe = SpeechRecipe.model_validate(content)
    assert recipe.push is None
    said: list[str] = []
    run_recipe(recipe, 0, 0)
    run_recipe(recipe, 5, 5, hub=hub, say=said.append)
    assert not hub.repositories
    assert "nothing is pushed" in said[-1]


def test_pushes_personal_models_alone_once_and_without_names(here, content):
    content["push"] = "me/models"
    recipe = SpeechRecipe.model_validate(content)
    hub = FakeHub()
    run_recipe(recipe, 0, 0)
    with pytest.raises(RecipeError, match="expected a personal model, found none: run stage 2"):
        run_recipe(recipe, 5, 5, hub=hub)
    run_recipe(recipe, 2, 2)
    said: list[str] = []
    run_recipe(recipe, 5, 5, hub=hub, say=said.append)
    assert hub.repositories == [("me/models", True, True)]
    assert [name for _, name in hub.uploads] == [
        "speaker-001/sparsity-0.5",
        "speaker-002/sparsity-0.5",
    ]
    assert any("CC BY 4.0" in line for line in said)
    run_recipe(recipe, 5, 5, hub=hub)
    assert len(hub.uploads) == 2


def test_an_upload_that_fails_goes_on_where_it_was(here, content):
    class Flaky(FakeHub):
        def upload_folder(self, **named):
            if len(self.uploads) == 1 and not self.mended:
                raise ConnectionError("no network")
            super().upload_folder(**named)

    hub = Flaky()
    hub.mended = False
    recipe = SpeechRecipe.model_validate(content | {"push": "me/models"})
    run_recipe(recipe, 0, 2)
    with pytest.raises(RecipeError, match=r"me/models: not all .*no network.*run stage 5 again"):
        run_recipe(recipe, 5, 5, hub=hub)
    hub.mended = True
    run_recipe(recipe, 5, 5, hub=hub)
    assert [name.partition("/")[0] for _, name in hub.uploads] == ["speaker-001", "speaker-002"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsities": [0.5]}, "sparsities: no such key .did you mean 'sparsity'..; the keys"),
        ({"corpus": {"name": "librispech"}}, "corpus.name: .*did you mean 'librispeech'"),
        ({"corpus": {"name": "fsdd", "data": "x"}}, "corpus.data: no such key .*'data_dir'"),
        (
            {"corpus": 3},
            "corpus: expected keys of its own .name, data_dir, download, options., found 3",
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


def test_options_of_the_corpus_are_checked(here, content):
    content["corpus"]["options"] = {"part": ["test-other"]}
    with pytest.raises(ManifestError, match=r"found 'part' .did you mean 'parts'"):
        run_recipe(SpeechRecipe.model_validate(content), 0, 0)
    content["corpus"]["options"] = {"parts": ["test-outer"]}
    with pytest.raises(RecipeError, match=r"librispeech cannot be read with .*test-outer"):
        run_recipe(SpeechRecipe.model_validate(content), 0, 0)
    assert corpus_options(["language=de", "parts=[dev]", "test_share=0.3"]) == {
        "language": "de",
        "parts": ["dev"],
        "test_share": 0.3,
    }
    with pytest.raises(RecipeError, match="expected NAME=VALUE"):
        corpus_options(["language"])


def test_prepare_writes_a_manifest(capsys, here, librispeech):
    arguments = ("prepare", "LibriSpeech", "--out", "out/manifest.jsonl", "--data-dir", librispeech)
    code, out, _ = run(capsys, *arguments, "--option", "parts=[test-other]")
    assert code == 0
    assert out.startswith("LibriSpeech: 3 speakers, 13 utterances, ")
    utterances = read_utterances(here / "out" / "manifest.jsonl", with_text=True)
    assert {each.split for each in utterances if each.speaker == "11"} == {"adapt", "test"}
    assert utterances[0].text == "SECRET WORDS"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("librispech",), "did you mean 'librispeech'"),
        (("librispeech",), "openslr.org/12"),
        (("torgo", "--data-dir", "nowhere"), "TORGO"),
        (("librispeech", "--option", "parts"), "expected NAME=VALUE"),
    ],
)
def test_prepare_fails_with_one_message(capsys, here, arguments, message):
    code, out, err = run(capsys, "prepare", *arguments, "--out", "manifest.jsonl")
    assert (code, out) == (1, "")
    assert message in err
    assert "Traceback" not in err
    assert not list(here.iterdir())


@pytest.mark.parametrize("name", CORPUS_NAMES)
def test_every_recipe_that_is_shipped_can_be_read(name):
    folder = ROOT / "recipes" / name
    recipe = read_speech_recipe(folder / f"{name}.yaml")
    assert recipe.corpus.name == name
    assert recipe.push is None
    assert recipe.exp == f"exp/{name}"
    readme = (folder / "README.md").read_text()
    assert f"recipes/{name}/run.sh" in readme
    lines = (folder / "run.sh").read_text().splitlines()
    assert len(lines) < 60
    assert "set -euo pipefail" in lines
    assert os.access(folder / "run.sh", os.X_OK)
    find_corpus(name)  # its options are known, though the corpus is not here
    with pytest.raises(ManifestError) as caught:
        find_corpus(name).utterances("/nowhere", seed=0, **recipe.corpus.options)
    assert "expected options among" not in str(caught.value)


def script(name: str, folder: Path, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(ROOT / "recipes" / name / "run.sh"), *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=300,
    )


bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


@bash
def test_the_script_says_what_it_takes(here):
    done = script("torgo", here, "--help")
    assert done.returncode == 0
    for word in ("--stage", "--stop-stage", "--speaker", "--model", "--sparsity", "--data-dir"):
        assert word in done.stdout
    assert not list(here.iterdir())


@bash
def test_the_script_runs_the_stages_asked_for(here, librispeech, tiny_group):
    where = ("--data-dir", librispeech, "--model", tiny_group, "--speaker", 11)
    done = script("librispeech", here, *where, "--sparsity", 0.5, "--stop-stage", 1)
    assert done.returncode == 0, done.stderr
    assert "stage 1: dense" in done.stderr
    assert "stage 2" not in done.stderr
    exp = here / "exp" / "librispeech"
    assert (exp / "results" / "11" / "dense" / "result.json").exists()
    assert not (exp / "personal").exists()


@bash
def test_the_script_fails_with_what_it_runs(here):
    done = script("librispeech", here, "--data-dir", "nowhere", "--stop-stage", 0)
    assert done.returncode == 1
    assert "openslr" in done.stderr
    assert "Traceback" not in done.stderr
    assert "done" not in done.stderr
    assert script("librispeech", here, "--no-such-option").returncode == 2
