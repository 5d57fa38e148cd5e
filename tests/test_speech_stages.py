"""The stages for speech on a miniature LibriSpeech: whole runs, second runs, errors."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import yaml
from commands import run
from tiny_hub import dataset, row

from fpspeech.corpora import CORPORA, ManifestError, find_corpus, read_utterances
from fpspeech.listening import listen
from fpspeech.models import load_speech_model
from fpspeech.personal import Personal
from fpspeech.personalize_speech import make_personal, personalize
from fpspeech.recipe_corpus import corpus_options
from fpspeech.recipe_file import RecipeError
from fpspeech.results import read_result
from fpspeech.speech_recipe import SpeechRecipe
from fpspeech.speech_stages import run_speech_recipe


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

    monkeypatch.setattr("fpspeech.speech_stages.load_speech_model", never)
    again = run(capsys, "run", path)
    assert again[:2] == main_code[:2]
    after = times(exp)
    assert {path: after[path] for path in before} == before
    assert (exp / "report" / "report.md").read_text() == report


def test_personal_models_hold_no_words_and_no_name(here, content):
    run_speech_recipe(
        SpeechRecipe.model_validate(content), stop_stage=2, overrides={"speakers": ["11"]}
    )
    files = [p for p in (here / "exp" / "personal").rglob("*") if p.is_file()]
    assert files
    for each in files:
        assert b"secret" not in each.read_bytes().lower()
        assert b"11-1" not in each.read_bytes()


def test_stages_speakers_and_sparsities_add_up(here, content):
    recipe = SpeechRecipe.model_validate(content)
    run_speech_recipe(recipe, 0, 1)
    assert not (here / "exp" / "personal").exists()
    run_speech_recipe(recipe, 2, 2, {"speakers": ["12"]})
    assert [each.name for each in (here / "exp" / "personal").iterdir()] == ["12"]
    run_speech_recipe(recipe, 2, 2, {"speakers": ["12"], "sparsity": [0.3]})
    assert sorted(each.name for each in (here / "exp" / "personal" / "12").iterdir()) == [
        "sparsity-0.3",
        "sparsity-0.5",
    ]
    run_speech_recipe(recipe, 4, 4, {"sparsity": [0.3, 0.5]})
    table = json.loads((here / "exp" / "report" / "overall.json").read_text())
    assert [(line["method"], line["sparsity"], line["speakers"]) for line in table] == [
        ("dense", 0.0, 1),  # of speaker 12: the same speakers on every line
        ("obs+least_squares", 0.3, 1),
        ("obs+least_squares", 0.5, 1),
    ]


def test_a_half_written_result_is_made_again(here, content):
    recipe = SpeechRecipe.model_validate(content)
    run_speech_recipe(recipe, 0, 1)
    folder = here / "exp" / "results" / "11" / "dense"
    (folder / "result.json").unlink()
    run_speech_recipe(recipe, 1, 1)
    assert read_result(folder).speaker == "11"


def test_stages_that_lack_what_comes_before_say_so(here, content):
    recipe = SpeechRecipe.model_validate(content)
    with pytest.raises(RecipeError, match=r"manifest\.jsonl does not exist: run stage 0"):
        run_speech_recipe(recipe, 1, 1)
    run_speech_recipe(recipe, 0, 0)
    with pytest.raises(RecipeError, match="expected a result, found none: run stage 1"):
        run_speech_recipe(recipe, 4, 4)
    with pytest.raises(RecipeError, match="found 3 to 2"):
        run_speech_recipe(recipe, 3, 2)
    with pytest.raises(RecipeError, match="'13' has nothing to adapt or to test on"):
        run_speech_recipe(recipe, 1, 1, {"speakers": ["13"]})
    with pytest.raises(RecipeError, match=r"'99' is none in .*expected speakers among 11, 12"):
        run_speech_recipe(recipe, 1, 1, {"speakers": ["99"]})


def test_results_of_two_experiments_never_mix(here, content, tiny_layer):
    recipe = SpeechRecipe.model_validate(content)
    run_speech_recipe(recipe, 0, 1)
    with pytest.raises(RecipeError, match=r"whose model is 'tiny-group.*--exp, or remove"):
        run_speech_recipe(recipe, 1, 1, {"model": str(tiny_layer)})
    with pytest.raises(RecipeError, match="whose seed is 0"):
        run_speech_recipe(recipe, 0, 1, {"seed": 1})
    with pytest.raises(RecipeError, match="whose personal method is"):
        run_speech_recipe(recipe, 0, 1, {"methods": ["random"]})


def test_a_wrong_data_dir_can_be_mended(here, content, librispeech):
    content["corpus"]["data_dir"] = "nowhere"
    recipe = SpeechRecipe.model_validate(content)
    with pytest.raises(ManifestError, match=r"LibriSpeech.*nowhere.*openslr"):
        run_speech_recipe(recipe, 0, 0)
    run_speech_recipe(recipe, 0, 0, {"data_dir": str(librispeech)})
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
        run_speech_recipe(SpeechRecipe.model_validate(content), 0, 0)
    content["corpus"] |= {"download": True}
    recipe = SpeechRecipe.model_validate(content)
    with pytest.raises(ManifestError, match="openslr"):
        run_speech_recipe(recipe, 0, 0, {"data_dir": "typing-error"})
    assert not asked
    run_speech_recipe(recipe, 0, 0)
    assert asked == [Path("exp/corpus")]


def test_a_speaker_without_words_is_left_out(here, content, tmp_path):
    root = write_librispeech(tmp_path / "LibriSpeech")
    for transcript in root.glob("test-other/12/*/*.trans.txt"):
        transcript.write_text(transcript.read_text().replace("SECRET  WORDS", "(LAUGH)"))
    content["corpus"]["data_dir"] = str(root)
    said: list[str] = []
    run_speech_recipe(SpeechRecipe.model_validate(content), 0, 3, say=said.append)
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
    run_speech_recipe(SpeechRecipe.model_validate(content), 1, 1)
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
    run_speech_recipe(recipe, 0, 0)
    run_speech_recipe(recipe, 5, 5, hub=hub, say=said.append)
    assert not hub.repositories
    assert "nothing is pushed" in said[-1]


def test_pushes_personal_models_alone_once_and_without_names(here, content):
    content["push"] = "me/models"
    recipe = SpeechRecipe.model_validate(content)
    hub = FakeHub()
    run_speech_recipe(recipe, 0, 0)
    with pytest.raises(RecipeError, match="expected a personal model, found none: run stage 2"):
        run_speech_recipe(recipe, 5, 5, hub=hub)
    run_speech_recipe(recipe, 2, 2)
    said: list[str] = []
    run_speech_recipe(recipe, 5, 5, hub=hub, say=said.append)
    assert hub.repositories == [("me/models", True, True)]
    assert [name for _, name in hub.uploads] == [
        "speaker-001/sparsity-0.5",
        "speaker-002/sparsity-0.5",
    ]
    assert any("CC BY 4.0" in line for line in said)
    run_speech_recipe(recipe, 5, 5, hub=hub)
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
    run_speech_recipe(recipe, 0, 2)
    with pytest.raises(RecipeError, match=r"me/models: not all .*no network.*run stage 5 again"):
        run_speech_recipe(recipe, 5, 5, hub=hub)
    hub.mended = True
    run_speech_recipe(recipe, 5, 5, hub=hub)
    assert [name.partition("/")[0] for _, name in hub.uploads] == ["speaker-001", "speaker-002"]


def test_options_of_the_corpus_are_checked(here, content):
    content["corpus"]["options"] = {"part": ["test-other"]}
    with pytest.raises(ManifestError, match=r"found 'part' .did you mean 'parts'"):
        run_speech_recipe(SpeechRecipe.model_validate(content), 0, 0)
    content["corpus"]["options"] = {"parts": ["test-outer"]}
    with pytest.raises(RecipeError, match=r"librispeech cannot be read with .*test-outer"):
        run_speech_recipe(SpeechRecipe.model_validate(content), 0, 0)
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


def bits(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.glob("*.safetensors")}


def test_a_speaker_is_listened_to_once_for_all_sparsities(here, content, monkeypatch):
    listened: list[str] = []

    def counted(model, layers, utterances, *others, **named):
        listened.append(utterances[0].speaker)
        return listen(model, layers, utterances, *others, **named)

    monkeypatch.setattr("fpspeech.adaptation.listen", counted)
    recipe = SpeechRecipe.model_validate(content | {"sparsity": [0.3, 0.5, 0.7]})
    run_speech_recipe(recipe, 0, 2)
    assert listened == ["11", "12"]
    # The same bits as where each sparsity is personalized to by itself.
    model = load_speech_model(recipe.model)
    mine = [each for each in read_utterances("exp/manifest.jsonl") if each.speaker == "12"]
    adapt = [each for each in mine if each.split == "adapt"]
    for sparsity in recipe.sparsity:
        alone = personalize(model, adapt, recipe.config("obs+least_squares", sparsity))
        alone.save(here / f"alone-{sparsity}")
        together = here / "exp" / "personal" / "12" / f"sparsity-{sparsity}"
        assert bits(together) == bits(here / f"alone-{sparsity}")


def test_a_run_that_was_killed_makes_what_is_missing(here, content, monkeypatch):
    recipe = SpeechRecipe.model_validate(content | {"sparsity": [0.3, 0.5]})
    run_speech_recipe(recipe, 0, 2, {"speakers": ["11"], "exp": "unbroken"})

    def killed(adaptation, selection, config, **named):
        if config.pruning.sparsity == 0.5:
            raise KeyboardInterrupt
        return make_personal(adaptation, selection, config, **named)

    monkeypatch.setattr("fpspeech.speech_stages.make_personal", killed)
    with pytest.raises(KeyboardInterrupt):
        run_speech_recipe(recipe, 0, 2, {"speakers": ["11"]})
    folder = here / "exp" / "personal" / "11"
    assert [each.name for each in folder.iterdir()] == ["sparsity-0.3"]
    before = times(folder)
    monkeypatch.undo()
    monkeypatch.chdir(here)
    run_speech_recipe(recipe, 2, 2, {"speakers": ["11"]})
    assert {path: times(folder)[path] for path in before} == before
    for sparsity in ("sparsity-0.3", "sparsity-0.5"):
        assert bits(folder / sparsity) == bits(here / "unbroken" / "personal" / "11" / sparsity)


def test_stage_0_has_the_base_model_and_the_corpus_made(here, content, librispeech, tiny_group):
    """By modules of `recipes`, in the place of those that train and synthesise."""
    package = here / "recipes" / "mine"
    package.mkdir(parents=True)
    (here / "recipes" / "__init__.py").touch()  # before this repository's
    for name, source in (("model", tiny_group), ("data", librispeech)):
        (package / f"{name}.py").write_text(
            "import shutil, sys\n"
            f"shutil.copytree({str(source)!r}, sys.argv[1])\n"
            f"print('{name} made with', *sys.argv[2:])\n"
        )
    content |= {"model": "made/model", "model_from": "recipes.mine.model"}
    content["corpus"] |= {"data_dir": "made/data", "data_from": "recipes.mine.data"}
    recipe = SpeechRecipe.model_validate(content)
    with pytest.raises(RecipeError, match=r"made/model is not there yet: run stage 0"):
        run_speech_recipe(recipe, 1, 1)
    said: list[str] = []
    run_speech_recipe(recipe, 0, 1, say=said.append)
    assert "recipes.mine.model: made/model, where it is not there" in said
    assert read_result(Path("exp/results/11/dense")).speaker == "11"
    settings = json.loads(Path("exp/settings.json").read_text())
    assert settings["model"].startswith("model (SHA-256 ")
    said.clear()
    run_speech_recipe(recipe, 0, 1, say=said.append)
    assert not any("recipes.mine" in line for line in said), "both are there"


def test_another_model_or_corpus_on_the_command_line_is_not_made(
    here, content, librispeech, tiny_group
):
    content |= {"model": "made/model", "model_from": "recipes.none"}
    content["corpus"] |= {"data_dir": "made/data", "data_from": "recipes.none"}
    recipe = SpeechRecipe.model_validate(content)
    with pytest.raises(RecipeError, match=r"recipes\.none failed .exit status 1. and made/data"):
        run_speech_recipe(recipe, 0, 0)
    run_speech_recipe(recipe, 0, 1, {"model": str(tiny_group), "data_dir": str(librispeech)})
    assert sorted(each.name for each in here.iterdir()) == ["exp"]


def test_a_dataset_of_the_hub_is_streamed_by_a_recipe(here, content, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(here / "cache"))
    dataset(here / "parquet", [row(n, "ab"[n % 2], chapter=n // 4) for n in range(16)])
    options = {"dataset": str(here / "parquet"), "split": "train", "session": "chapter"}
    content["corpus"] = {"name": "hub", "download": True, "options": options}
    recipe = SpeechRecipe.model_validate(content)
    said: list[str] = []
    run_speech_recipe(recipe, 0, 2, {"speakers": ["a"]}, say=said.append)
    assert any("downloading a dataset of the Hugging Face Hub" in line for line in said)
    assert len(list(Path("exp/corpus/hub").rglob("*.flac"))) == 16
    assert read_result(Path("exp/results/a/dense")).errors.words > 0


def test_a_recipe_is_known_by_its_keys(capsys, here, content):
    path = write_yaml(here, {key: value for key, value in content.items() if key != "corpus"})
    code, _, err = run(capsys, "run", path)
    assert code == 1
    assert "either the key corpus (a recipe for speech) or the key users" in err
    assert "found neither" in err
    path = write_yaml(here, content | {"users": {}})
    assert "found both" in run(capsys, "run", path)[2]
    path = write_yaml(here, {"corpuss": {}, "model": "x"})
    assert "(did you mean 'corpus'?)" in run(capsys, "run", path)[2]
    path = write_yaml(here, content)
    assert (
        "a recipe for speech: name speakers with --speaker"
        in run(capsys, "run", path, "--user", "anna")[2]
    )
