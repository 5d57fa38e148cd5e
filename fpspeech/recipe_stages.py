"""The stages of a recipe for speech; what a stage has written, it does not make again.

Every result is written whole or not at all, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import yaml
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from fpspeech.config import Config
from fpspeech.corpora import (
    Corpus,
    CorpusNotFound,
    UnusableAudio,
    Utterance,
    find_corpus,
    fingerprint,
    read_utterances,
    write_manifest,
)
from fpspeech.corpora.layout import DATA_VARIABLE
from fpspeech.evaluate import TestSet, choose_test_set, recognise
from fpspeech.evaluation import percentage, text_normalizer
from fpspeech.listening import Heard, Listener, listen
from fpspeech.models import SpeechModel, find_model, load_speech_model
from fpspeech.output_folder import whole_folder
from fpspeech.personal import SETTINGS, Personal, Recordings
from fpspeech.personalize import personalize, pruning_for, select_layers_of
from fpspeech.pruning import (
    Selection,
    apply_masks,
    make_masks,
    products_for,
    sparsity_of,
    update_weights,
)
from fpspeech.recipe_file import RecipeError
from fpspeech.results import (
    DENSE,
    RESULT,
    Result,
    Summary,
    read_result,
    summaries_csv,
    summaries_json,
    summaries_markdown,
    summarise,
    write_result,
)
from fpspeech.speech_recipe import STAGES, SpeechRecipe

ANOTHER = "another_speaker"
MANIFEST, SETTINGS_FILE, PUSHED = "manifest.jsonl", "settings.json", "pushed.json"
LAST = len(STAGES) - 1

Say = Callable[[str], None]


class Hub(Protocol):
    """What pushing needs of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Makes a repository where there is none."""

    def upload_folder(self, *, repo_id: str, folder_path: Path, path_in_repo: str) -> Any:
        """Uploads the files of a folder."""


def run_recipe(
    recipe: SpeechRecipe,
    stage: int = 0,
    stop_stage: int = LAST,
    overrides: Mapping[str, Any] | None = None,
    *,
    say: Say = lambda line: None,
    hub: Hub | None = None,
) -> Path:
    """Runs the stages from `stage` to `stop_stage` and returns the experiment's folder.

    Stages: 0 data, 1 dense, 2 personalize, 3 controls, 4 report, 5 push (nothing where the recipe
    names no repository). overrides: see `SpeechRecipe.overruled`. say: is told what goes on, a
    line at a time. hub: in the place of the Hugging Face Hub.

    Raises RecipeError for what cannot be run, and the errors of corpora, models and evaluation.
    """
    if not 0 <= stage <= stop_stage <= LAST:
        raise RecipeError(
            f"expected stages among 0 to {LAST} ({', '.join(STAGES)}), the first before the last; "
            f"found {stage} to {stop_stage}"
        )
    run = _Run(recipe.overruled(overrides or {}), say, hub)
    stages = (run.data, run.dense, run.personalize, run.controls, run.report, run.push)
    run.settle(with_model=stage <= 3 and stop_stage >= 1)
    for number in range(stage, stop_stage + 1):
        say(f"stage {number}: {STAGES[number]}")
        run.keep_settings()
        stages[number]()
    run.keep_settings()
    return run.exp


def read_corpus(
    corpus: Corpus, data_dir: str | Path | None, options: Mapping[str, Any]
) -> list[Utterance]:
    """The corpus' utterances; raises RecipeError for an option of a wrong value or type.

    Raises ManifestError, and CorpusNotFound with how to get the corpus.
    """
    try:
        return corpus.utterances(data_dir, **options)
    except (TypeError, ValueError) as error:
        if type(error).__module__.startswith("fpspeech."):
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise RecipeError(f"{corpus.name} cannot be read with {given}: {error}") from error


def corpus_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Options of a corpus from NAME=VALUE, the value in YAML; raises RecipeError."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"{pair!r}: {value!r} is no value: {error}") from error
        if not name or not equals:
            raise RecipeError(f"expected NAME=VALUE such as language=de, found {pair!r}")
    return found


class _Run:
    """One recipe in one folder: what is there, and what is still to be made."""

    def __init__(self, recipe: SpeechRecipe, say: Say, hub: Hub | None):
        self.recipe = recipe
        self.exp = Path(recipe.exp)
        self.normalizer = text_normalizer(recipe.language)
        self._say = say
        self._hub = hub
        self._test_sets: dict[str, TestSet] = {}
        self._listener = Listener(skipped=lambda skipped, message: say(f"skipped {message}"))

    def settle(self, *, with_model: bool) -> None:
        """Holds the folder to one corpus, model and way to prune: results must compare.

        Raises RecipeError where it holds results of others. Speakers, methods and sparsities may
        differ from run to run: they add results.
        """
        recipe = self.recipe
        now: dict[str, Any] = {
            "corpus": recipe.corpus.name,
            "corpus options": recipe.corpus.options,
            "language": recipe.language,
            "normalizer": f"{self.normalizer.name} {self.normalizer.version}",
            "pruning": recipe.pruning.model_dump(exclude_none=True),
            "exclude": recipe.exclude,
            "personal method": recipe.methods[0],
            "seed": recipe.seed,
        }
        if recipe.corpus.data_dir is not None:
            now["data_dir"] = str(Path(recipe.corpus.data_dir).resolve())
        if with_model:
            source = find_model(recipe.model, recipe.revision)
            now["model"] = f"{source.id} (SHA-256 {source.sha256})"
        path = self.exp / SETTINGS_FILE
        before = _read_json(path) if path.exists() else {}
        for name, value in now.items():
            if name in before and before[name] != value:
                raise RecipeError(
                    f"{self.exp} holds an experiment whose {name} is {before[name]!r}, and the "
                    f"recipe now says {value!r}: give another folder with --exp, or remove this one"
                )
        self._settled = before | now

    def keep_settings(self) -> None:
        """Writes what the folder is held to, once there is something in it."""
        if (self.exp / MANIFEST).exists():
            _write_json(self.exp / SETTINGS_FILE, self._settled)

    def data(self) -> None:
        """Stage 0: the manifest, of a corpus that is found or downloaded."""
        path = self.exp / MANIFEST
        if path.exists():
            self._say(f"{path} is there")
            return
        utterances = self._read_corpus()
        write_manifest(path, utterances)
        speakers = len({utterance.speaker for utterance in utterances})
        self._say(f"wrote {path}: {speakers} speakers, {len(utterances)} utterances")

    def dense(self) -> None:
        """Stage 1: the base model on every speaker."""
        for speaker in self.speakers:
            if self._is_missing(speaker, DENSE, 0.0):
                self._measure(speaker, DENSE, 0.0, 0.0)

    def personalize(self) -> None:
        """Stage 2: a personal model of every speaker at every sparsity, measured."""
        method = self.recipe.methods[0]
        for speaker in self.speakers:
            for sparsity in self.recipe.sparsity:
                self._make_personal(speaker, sparsity)
                if self._is_missing(speaker, method, sparsity):
                    personal = Personal.load(self._personal(speaker, sparsity))
                    reached = personal.report["sparsity"]
                    with personal.apply(self.model):
                        self._measure(speaker, method, sparsity, reached)

    def controls(self) -> None:
        """Stage 3: the other methods, and another speaker's model, at the same sparsities."""
        for speaker in self.speakers:
            wanted = [
                (method, sparsity)
                for method in self.recipe.methods[1:]
                for sparsity in self.recipe.sparsity
                if self._is_missing(speaker, method, sparsity)
            ]
            if wanted:
                self._measure_methods(speaker, wanted)
            if self.recipe.another_speaker:
                self._measure_another(speaker)

    def report(self) -> None:
        """Stage 4: tables over everything measured so far of the recipe's speakers."""
        results = self._results()
        lines = summarise(results, seed=self.recipe.seed)
        overall = [line for line in lines if line.speaker is None]
        each = [line for line in lines if line.speaker is not None]
        with whole_folder(self.exp / "report", overwrite=True) as draft:
            for name, some in (("overall", overall), ("speakers", each)):
                values = json.dumps(summaries_json(some, self.normalizer), indent=2)
                (draft / f"{name}.json").write_text(values + "\n", encoding="utf-8")
                (draft / f"{name}.md").write_text(summaries_markdown(some), encoding="utf-8")
                table = summaries_csv(some, self.normalizer)
                (draft / f"{name}.csv").write_text(table, encoding="utf-8")
            text = self._report_text(results, overall, each)
            (draft / "report.md").write_text(text, encoding="utf-8")
        self._say(f"wrote {self.exp / 'report'}")

    def push(self) -> None:
        """Stage 5: the personal models to the Hub, under numbers instead of names.

        Nothing without a repository in the recipe. The repository is made private.
        """
        repository = self.recipe.push
        if repository is None:
            self._say("nothing is pushed: the recipe names no repository")
            return
        folders = [
            (f"speaker-{number:03d}/{_amount(sparsity)}", self._personal(speaker, sparsity))
            for number, speaker in enumerate(self.usable, start=1)
            if speaker in self.speakers
            for sparsity in self.recipe.sparsity
        ]
        for _, folder in folders:
            if not (folder / SETTINGS).exists():
                raise RecipeError(f"{folder}: expected a personal model, found none: run stage 2")
        path = self.exp / PUSHED
        pushed = _read_json(path) if path.exists() else {}
        done = pushed.setdefault(repository, {})
        corpus = find_corpus(self.recipe.corpus.name)
        self._say(f"{corpus.title}: {corpus.licence}; may not be passed on: {corpus.not_shared}")
        left = [(name, folder) for name, folder in folders if name not in done]
        if left:
            hub = self._hub or _hugging_face()
            try:
                hub.create_repo(repository, private=True, exist_ok=True)
                for name, folder in left:
                    hub.upload_folder(repo_id=repository, folder_path=folder, path_in_repo=name)
                    done[name] = str(folder.relative_to(self.exp))
                    _write_json(path, pushed)
            except (HfHubHTTPError, HFValidationError, OSError) as error:
                raise RecipeError(
                    f"{repository}: not all could be uploaded ({type(error).__name__}: {error}); "
                    "check the name, the network and `hf auth whoami`, and run stage 5 again: it "
                    "goes on with what is missing"
                ) from error
        self._say(f"{len(folders)} personal models are in {repository}")

    @cached_property
    def model(self) -> SpeechModel:
        """The base model, loaded when something is to be measured."""
        recipe = self.recipe
        return load_speech_model(
            recipe.model,
            revision=recipe.revision,
            device=recipe.device,
            language=recipe.language,
        )

    @cached_property
    def _selection(self) -> Selection:
        config = self.recipe.config(self.recipe.methods[0], self.recipe.sparsity[0])
        return select_layers_of(self.model, config)

    @cached_property
    def utterances(self) -> dict[str, list[Utterance]]:
        """Those of the manifest, by speaker."""
        path = self.exp / MANIFEST
        if not path.exists():
            raise RecipeError(f"{path} does not exist: run stage 0")
        found: dict[str, list[Utterance]] = {}
        for utterance in read_utterances(path, with_text=True):
            found.setdefault(utterance.speaker, []).append(utterance)
        return dict(sorted(found.items()))

    @cached_property
    def usable(self) -> list[str]:
        """The speakers with recordings to adapt on and words to test on."""
        return [
            speaker
            for speaker, mine in self.utterances.items()
            if any(each.split == "adapt" for each in mine)
            and any(each.split == "test" and self.normalizer(each.text or "") for each in mine)
        ]

    @cached_property
    def speakers(self) -> list[str]:
        """The recipe's; raises RecipeError for one that cannot be measured."""
        wanted = self.recipe.speakers
        if wanted == "all":
            if not self.usable:
                raise RecipeError(
                    f"{self.exp / MANIFEST}: no speaker has recordings to adapt on and "
                    "transcribed ones to test on"
                )
            left_out = len(self.utterances) - len(self.usable)
            if left_out:
                self._say(f"{left_out} speakers left out: nothing to adapt or to test on")
            return self.usable
        for speaker in wanted:
            if speaker in self.usable:
                continue
            what = "has nothing to adapt or to test on" if speaker in self.utterances else "is none"
            raise RecipeError(
                f"{speaker!r} {what} in {self.exp / MANIFEST}: expected speakers among "
                f"{', '.join(self.usable[:20])}{', ...' if len(self.usable) > 20 else ''}"
            )
        return list(dict.fromkeys(wanted))

    def _read_corpus(self) -> list[Utterance]:
        section = self.recipe.corpus
        corpus = find_corpus(section.name)
        options = {"seed": self.recipe.seed, **section.options}
        try:
            return read_corpus(corpus, section.data_dir, options)
        except CorpusNotFound:
            if not section.download or section.data_dir is not None or corpus.download is None:
                raise
        target = Path(os.environ.get(DATA_VARIABLE) or self.exp / "corpus")
        self._say(f"downloading {corpus.title} ({corpus.licence}) to {target}")
        return read_corpus(corpus, corpus.download(target), options)

    def _adaptation_set(self, speaker: str) -> list[Utterance]:
        """Recordings to listen to; their transcripts are dropped here."""
        mine = self.utterances[speaker]
        return [replace(each, text=None) for each in mine if each.split == "adapt"]

    def _test_set(self, speaker: str) -> TestSet:
        """The same for every model of a speaker: never a recording that one of them heard."""
        if speaker in self._test_sets:
            return self._test_sets[speaker]
        heard = []
        for utterance in self._adaptation_set(speaker):
            try:
                heard.append(fingerprint(utterance.audio))
            except UnusableAudio:
                continue  # is not listened to either
        self._test_sets[speaker] = choose_test_set(
            self.utterances[speaker], Recordings.of(heard), self._listener
        )
        return self._test_sets[speaker]

    def _personal(self, speaker: str, sparsity: float) -> Path:
        return self.exp / "personal" / _file_name(speaker) / _amount(sparsity)

    def _result(self, speaker: str, method: str, sparsity: float) -> Path:
        name = method if method == DENSE else f"{method}-{_amount(sparsity)}"
        return self.exp / "results" / _file_name(speaker) / name

    def _is_missing(self, speaker: str, method: str, sparsity: float) -> bool:
        return not (self._result(speaker, method, sparsity) / RESULT).exists()

    def _make_personal(self, speaker: str, sparsity: float) -> Path:
        folder = self._personal(speaker, sparsity)
        if not (folder / SETTINGS).exists():
            self._say(f"{speaker}: listening, then pruning to {sparsity:.0%} zeros")
            checkpoint = folder.with_name(f".{folder.name}.statistics.safetensors")
            personal = personalize(
                self.model,
                self._adaptation_set(speaker),
                self.recipe.config(self.recipe.methods[0], sparsity),
                checkpoint=checkpoint,
                listener=self._listener,
            )
            personal.save(folder)
            checkpoint.unlink(missing_ok=True)
        return folder

    def _measure(
        self, speaker: str, method: str, sparsity: float, reached: float, **facts: Any
    ) -> None:
        """Transcribes the speaker's test set with the model as it is now, and writes the result."""
        started = time.perf_counter()
        test_set = self._test_set(speaker)
        seed = self.recipe.seed
        found = recognise(self.model, test_set, self.normalizer, seed=seed, listener=self._listener)
        counts = {
            "test_seconds": round(sum(each.seconds for each in test_set.recordings), 3),
            "already_heard": test_set.already_heard,
            "without_text": test_set.without_text,
            "unusable": len(test_set.skipped),
            "wall_seconds": round(time.perf_counter() - started, 3),
        }
        result = Result(
            speaker, method, sparsity, reached, found.errors, found.hallucinations, facts | counts
        )
        write_result(self._result(speaker, method, sparsity), result, seed=seed)
        zeros = f" at {sparsity:.0%} zeros" if sparsity else ""
        self._say(f"{speaker}: {method}{zeros}: {percentage(found.wer)} wrong")

    def _measure_methods(self, speaker: str, wanted: Sequence[tuple[str, float]]) -> None:
        """Methods at sparsities, from listening to the speaker once."""
        configs = [self.recipe.config(method, sparsity) for method, sparsity in wanted]
        layers = self._selection.layers
        products = [products_for(layers, config.pruning) for config in configs]
        heard = listen(
            self.model,
            layers,
            self._adaptation_set(speaker),
            products=frozenset().union(*products),
            product_stride=configs[0].pruning.product_stride,
            batch_size=self.recipe.batch_size,
            listener=self._listener,
        )
        for (method, sparsity), config in zip(wanted, configs, strict=True):
            self._measure_method(speaker, method, sparsity, config, heard)

    def _measure_method(
        self, speaker: str, method: str, sparsity: float, config: Config, heard: Heard
    ) -> None:
        layers = self._selection.layers
        pruning = pruning_for(self.model, config)
        masks = make_masks(layers, heard.statistics, pruning)
        kept = update_weights(layers, masks, heard.statistics, pruning)
        with apply_masks(layers, masks, kept=kept):
            self._measure(speaker, method, sparsity, sparsity_of(masks))

    def _measure_another(self, speaker: str) -> None:
        """The personal model of the speaker who comes next, on this one."""
        if len(self.usable) < 2:
            self._say("one speaker alone: no control of another speaker's model")
            return
        other = self.usable[(self.usable.index(speaker) + 1) % len(self.usable)]
        for sparsity in self.recipe.sparsity:
            if self._is_missing(speaker, ANOTHER, sparsity):
                personal = Personal.load(self._make_personal(other, sparsity))
                reached = personal.report["sparsity"]
                with personal.apply(self.model):
                    self._measure(speaker, ANOTHER, sparsity, reached, adapted_to=other)

    def _results(self) -> list[Result]:
        recipe = self.recipe
        methods = [*recipe.methods, *([ANOTHER] if recipe.another_speaker else [])]
        systems = [(DENSE, 0.0), *((m, s) for m in methods for s in recipe.sparsity)]
        folders = [
            self._result(speaker, *system)
            for speaker in self.speakers
            for system in systems
            if system[0] == DENSE or not self._is_missing(speaker, *system)
        ]
        for folder in folders:
            if not (folder / RESULT).exists():
                raise RecipeError(f"{folder}: expected a result, found none: run stage 1")
        return [read_result(folder) for folder in folders]

    def _report_text(
        self, results: Sequence[Result], overall: Sequence[Summary], each: Sequence[Summary]
    ) -> str:
        corpus = find_corpus(self.recipe.corpus.name)
        model = _read_json(self.exp / SETTINGS_FILE).get("model", self.recipe.model)
        dense = [result for result in results if result.method == DENSE]
        test_minutes = sum(result.facts["test_seconds"] for result in dense) / 60
        seconds = sum(result.facts["wall_seconds"] for result in results)
        left_out = {
            "with an empty reference": sum(r.errors.empty_references for r in dense),
            "without a transcript": sum(r.facts["without_text"] for r in dense),
            "that were adapted on": sum(r.facts["already_heard"] for r in dense),
            "that cannot be read": sum(r.facts["unusable"] for r in dense),
        }
        adapted = sum(len(self._adaptation_set(speaker)) for speaker in self.speakers)
        tested = sum(len(result.errors.utterances) for result in dense)
        compared = overall[0].speakers if overall else 0
        rate = "Word" if self.normalizer.unit == "word" else "Character"
        return f"""# {corpus.title}: personalized by pruning

- Model: {model}
- Corpus: {corpus.title}, {corpus.licence}{f", {corpus.homepage}" if corpus.homepage else ""}
- Adapt and test apart: {corpus.split}
- {len(dense)} speakers: {adapted} recordings to adapt on without transcripts, {tested} to test on \
({test_minutes:.1f} minutes)
- Left out of the test: {", ".join(f"{n} {what}" for what, n in left_out.items())}
- Text: {self.normalizer.name} {self.normalizer.version}, counted by {self.normalizer.unit}
- Intervals: 95 % bootstrap over utterances, over speakers first for all together; P(better): \
that the model is better than dense, paired; seed {self.recipe.seed}
- `{self.recipe.methods[0]}` makes the personal models; `{ANOTHER}` is the personal model of the \
speaker who comes next
- Transcribing took {seconds:.0f} s in all

{rate} error rates of the {compared} speakers whom every model was measured on:

{summaries_markdown(overall)}
By speaker:

{summaries_markdown(each)}"""


def _file_name(speaker: str) -> str:
    """A name for a folder: nothing in it leads out of the experiment's."""
    name = quote(speaker, safe=" ")
    return f"%2E{name[1:]}" if name.startswith(".") else name


def _amount(sparsity: float) -> str:
    return f"sparsity-{sparsity:g}"


def _hugging_face() -> Hub:
    from huggingface_hub import HfApi

    return HfApi()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise RecipeError(f"{path} holds no JSON object: remove it")
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, path)
