"""The stages of a recipe for speech; what a stage has written, it does not make again.

Every result is written whole or not at all, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fpspeech.adaptation import Adaptation, adapt_to, before_pruning
from fpspeech.config import Config
from fpspeech.corpora import find_corpus
from fpspeech.evaluate_speech import recognise
from fpspeech.evaluation import percentage, text_normalizer
from fpspeech.experiment import amount
from fpspeech.generic import Generic, find_generic
from fpspeech.listening import Listener
from fpspeech.models import SpeechModel, load_speech_model
from fpspeech.personal import SETTINGS, Personal
from fpspeech.personalize_speech import make_personal, select_layers_of
from fpspeech.pruning import Selection, products_for, sparsity_of
from fpspeech.recipe_file import RecipeError
from fpspeech.recipe_push import Hub
from fpspeech.recipe_stages import LAST, Say, StagedRun, require_stages, silently
from fpspeech.results import DENSE, RESULT, Result, read_result, write_result
from fpspeech.speech_data import SpeechData
from fpspeech.speech_recipe import SpeechRecipe
from fpspeech.speech_report import ANOTHER, ReportFacts, write_report


def run_speech_recipe(
    recipe: SpeechRecipe,
    stage: int = 0,
    stop_stage: int = LAST,
    overrides: Mapping[str, Any] | None = None,
    *,
    say: Say = silently,
    hub: Hub | None = None,
) -> Path:
    """Runs the stages from `stage` to `stop_stage` and returns the experiment's folder.

    overrides: see `SpeechRecipe.overruled`. hub: in the place of the Hugging Face Hub.
    Raises RecipeError for what cannot be run, and the errors of corpora, models and evaluation.
    """
    require_stages(stage, stop_stage)
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    return _Run(recipe.overruled(given), frozenset(given), say, hub).run(stage, stop_stage)


class _Run(StagedRun[SpeechRecipe]):
    def __init__(self, recipe: SpeechRecipe, overruled: frozenset[str], say: Say, hub: Hub | None):
        super().__init__(recipe, recipe.exp, overruled, say, hub)
        self.normalizer = text_normalizer(recipe.language)
        self._listener = Listener(skipped=lambda skipped, message: say(f"skipped {message}"))
        self.data = SpeechData(
            recipe,
            self.exp,
            self.normalizer,
            makes_data="data_dir" not in overruled,
            listener=self._listener,
            say=say,
        )

    def facts(self) -> dict[str, Any]:
        """What results must have in common: speakers, methods and sparsities may differ."""
        recipe = self.recipe
        now: dict[str, Any] = {
            "corpus": recipe.corpus.name,
            "corpus options": recipe.corpus.options,
            "language": recipe.language,
            "normalizer": f"{self.normalizer.name} {self.normalizer.version}",
            "pruning": recipe.pruning.model_dump(exclude_none=True),
            "exclude": recipe.exclude,
            "generic": recipe.generic,
            "personal method": recipe.methods[0],
            "seed": recipe.seed,
        }
        if recipe.corpus.data_dir is not None:
            now["data_dir"] = str(Path(recipe.corpus.data_dir).resolve())
        return now

    def prepare(self) -> None:
        """Stage 0: the manifest, of a corpus that is found, made or downloaded; the base model."""
        self.data.write_manifest()
        if self.makes_model:
            self.make_model(self.data.root())

    def dense(self) -> None:
        """Stage 1: the base model on every speaker."""
        for speaker in self.data.speakers:
            if self._is_missing(speaker, DENSE, 0.0):
                self._measure(speaker, DENSE, 0.0, 0.0)

    def personalize(self) -> None:
        """Stage 2: a personal model of every speaker at every sparsity, measured."""
        method = self.recipe.methods[0]
        for speaker in self.data.speakers:
            self._make_personal(speaker)
            for sparsity in self.recipe.sparsity:
                if self._is_missing(speaker, method, sparsity):
                    personal = Personal.load(self.exp.personal(speaker, sparsity))
                    reached = personal.report["sparsity"]
                    with personal.apply(self.model):
                        self._measure(speaker, method, sparsity, reached)

    def controls(self) -> None:
        """Stage 3: the other methods, and another speaker's model, at the same sparsities."""
        for speaker in self.data.speakers:
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
        recipe = self.recipe
        facts = ReportFacts(
            find_corpus(recipe.corpus.name),
            self.exp.settings().get("model", recipe.model),
            self.normalizer,
            recipe.methods[0],
            sum(len(self.data.adaptation_set(speaker)) for speaker in self.data.speakers),
            recipe.seed,
        )
        write_report(self.exp.folder / "report", self._results(), facts)
        self._say(f"wrote {self.exp.folder / 'report'}")

    def to_push(self) -> dict[str, Path]:
        """By speaker, as a number, and sparsity."""
        corpus = find_corpus(self.recipe.corpus.name)
        self._say(f"{corpus.title}: {corpus.licence}; may not be passed on: {corpus.not_shared}")
        return {
            f"speaker-{number:03d}/{amount(sparsity)}": self.exp.personal(speaker, sparsity)
            for number, speaker in enumerate(self.data.usable, start=1)
            if speaker in self.data.speakers
            for sparsity in self.recipe.sparsity
        }

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
    def _generic(self) -> Generic | None:
        path = self.recipe.generic
        return find_generic(self.model, None if path is None else Path(path))

    @cached_property
    def _selection(self) -> Selection:
        config = self.recipe.config(self.recipe.methods[0], self.recipe.sparsity[0])
        return select_layers_of(self.model, config)

    def _result(self, speaker: str, method: str, sparsity: float) -> Path:
        system = method if method == DENSE else f"{method}-{amount(sparsity)}"
        return self.exp.result(speaker, system)

    def _is_missing(self, speaker: str, method: str, sparsity: float) -> bool:
        return not (self._result(speaker, method, sparsity) / RESULT).exists()

    def _adapt_to(
        self, speaker: str, configs: Sequence[Config], checkpoint: Path | None = None
    ) -> Adaptation:
        """One pass over a speaker's recordings that serves all of these settings.

        They may differ in all but the normalisation, under which the recordings are heard.
        """
        layers = self._selection.layers
        products = [products_for(layers, config.pruning) for config in configs]
        # Only pruning listens in sequential order, so any other settings come first.
        first = min(
            configs,
            key=lambda each: (each.pruning.order == "sequential", each.allocation == "uniform"),
        )
        return adapt_to(
            self.model,
            layers,
            self.data.adaptation_set(speaker),
            first,
            products=frozenset().union(*products),
            generic=self._generic,
            checkpoint=checkpoint,
            listener=self._listener,
        )

    def _make_personal(self, speaker: str) -> None:
        """The personal models of a speaker that are missing, from listening once."""
        missing = [
            sparsity
            for sparsity in self.recipe.sparsity
            if not (self.exp.personal(speaker, sparsity) / SETTINGS).exists()
        ]
        if not missing:
            return
        zeros = ", ".join(f"{sparsity:.0%}" for sparsity in missing)
        self._say(f"{speaker}: listening, then pruning to {zeros} zeros")
        configs = {each: self.recipe.config(self.recipe.methods[0], each) for each in missing}
        folder = self.exp.personal(speaker, missing[0]).parent
        checkpoint = folder / ".statistics.safetensors"
        adaptation = self._adapt_to(speaker, list(configs.values()), checkpoint)
        for sparsity, config in configs.items():
            staged = folder / f".{amount(sparsity)}.safetensors"
            personal = make_personal(adaptation, self._selection, config, checkpoint=staged)
            personal.save(self.exp.personal(speaker, sparsity))
            staged.unlink(missing_ok=True)
        checkpoint.unlink(missing_ok=True)

    def _measure(
        self, speaker: str, method: str, sparsity: float, reached: float, **facts: Any
    ) -> None:
        """Transcribes the speaker's test set with the model as it is now, and writes the result."""
        started = time.perf_counter()
        test_set = self.data.test_set(speaker)
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
        """Methods at sparsities, from listening to the speaker once a normalisation."""
        kinds: dict[tuple[object, ...], dict[tuple[str, float], Config]] = {}
        for system in wanted:
            config = self.recipe.config(*system)
            kinds.setdefault(before_pruning(config), {})[system] = config
        for configs in kinds.values():
            adaptation = self._adapt_to(speaker, list(configs.values()))
            for (method, sparsity), config in configs.items():
                pruned = adaptation.prune(config)
                with adaptation.apply(pruned):
                    self._measure(speaker, method, sparsity, sparsity_of(pruned.masks))

    def _measure_another(self, speaker: str) -> None:
        """The personal model of the speaker who comes next, on this one."""
        if len(self.data.usable) < 2:
            self._say("one speaker alone: no control of another speaker's model")
            return
        other = self.data.usable[(self.data.usable.index(speaker) + 1) % len(self.data.usable)]
        missing = [
            each for each in self.recipe.sparsity if self._is_missing(speaker, ANOTHER, each)
        ]
        if missing:
            self._make_personal(other)
        for sparsity in missing:
            personal = Personal.load(self.exp.personal(other, sparsity))
            reached = personal.report["sparsity"]
            with personal.apply(self.model):
                self._measure(speaker, ANOTHER, sparsity, reached, adapted_to=other)

    def _results(self) -> list[Result]:
        recipe = self.recipe
        methods = [*recipe.methods, *([ANOTHER] if recipe.another_speaker else [])]
        systems = [(DENSE, 0.0), *((m, s) for m in methods for s in recipe.sparsity)]
        folders = [
            self._result(speaker, *system)
            for speaker in self.data.speakers
            for system in systems
            if system[0] == DENSE or not self._is_missing(speaker, *system)
        ]
        for folder in folders:
            if not (folder / RESULT).exists():
                raise RecipeError(f"{folder}: expected a result, found none: run stage 1")
        return [read_result(folder) for folder in folders]
