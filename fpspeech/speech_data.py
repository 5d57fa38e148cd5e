"""What a recipe for speech adapts and tests on: its corpus, the manifest, speakers, test sets."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from fpspeech.corpora import (
    CorpusNotFound,
    Utterance,
    contents,
    find_corpus,
    read_utterances,
    write_manifest,
)
from fpspeech.corpora.layout import DATA_VARIABLE
from fpspeech.evaluate_speech import TestSet, choose_test_set
from fpspeech.evaluation import TextNormalizer
from fpspeech.experiment import Experiment
from fpspeech.listening import Listener
from fpspeech.personal import Recordings
from fpspeech.recipe_corpus import find_or_download, read_corpus
from fpspeech.recipe_file import RecipeError
from fpspeech.recipe_stages import Say, run_module
from fpspeech.speech_recipe import SpeechRecipe


class SpeechData:
    """The recordings of a recipe, by its manifest.

    makes_data: whether the recipe's own module may make the corpus where it says it is.
    """

    def __init__(
        self,
        recipe: SpeechRecipe,
        exp: Experiment,
        normalizer: TextNormalizer,
        *,
        makes_data: bool,
        listener: Listener,
        say: Say,
    ):
        self._recipe = recipe
        self._exp = exp
        self._normalizer = normalizer
        self._makes_data = makes_data
        self._listener = listener
        self._say = say
        self._test_sets: dict[str, TestSet] = {}

    def write_manifest(self) -> None:
        """Writes the manifest of a corpus that is found, made or downloaded, where it is missing.

        Raises RecipeError, CorpusNotFound and ManifestError.
        """
        path = self._exp.manifest
        if path.exists():
            self._say(f"{path} is there")
            return
        section = self._recipe.corpus
        if section.data_from is not None and self._makes_data:
            where = section.data_dir or ""
            run_module(section.data_from, where, self._exp.folder, None, self._say)
        wanted = section.download and section.data_dir is None
        root = find_or_download(
            find_corpus(section.name),
            section.data_dir,
            self._options,
            self._download_target if wanted else None,
            self._say,
        )
        utterances = read_corpus(find_corpus(section.name), root, self._options)
        write_manifest(path, utterances)
        speakers = len({utterance.speaker for utterance in utterances})
        self._say(f"wrote {path}: {speakers} speakers, {len(utterances)} utterances")

    def root(self) -> Path | None:
        """Where the corpus is, if it is there: as the recipe says, or downloaded by stage 0."""
        corpus = find_corpus(self._recipe.corpus.name)
        for place in (self._recipe.corpus.data_dir, self._download_target):
            try:
                return corpus.root(place, **self._options)
            except CorpusNotFound:
                continue
        return None

    @cached_property
    def utterances(self) -> dict[str, list[Utterance]]:
        """Those of the manifest, by speaker."""
        path = self._exp.manifest
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
            and any(each.split == "test" and self._normalizer(each.text or "") for each in mine)
        ]

    @cached_property
    def speakers(self) -> list[str]:
        """The recipe's; raises RecipeError for one that cannot be measured."""
        wanted = self._recipe.speakers
        if wanted == "all":
            if not self.usable:
                raise RecipeError(
                    f"{self._exp.manifest}: no speaker has recordings to adapt on and "
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
                f"{speaker!r} {what} in {self._exp.manifest}: expected speakers among "
                f"{', '.join(self.usable[:20])}{', ...' if len(self.usable) > 20 else ''}"
            )
        return list(dict.fromkeys(wanted))

    def adaptation_set(self, speaker: str) -> list[Utterance]:
        """Recordings to listen to; their transcripts are dropped here."""
        mine = self.utterances[speaker]
        return [replace(each, text=None) for each in mine if each.split == "adapt"]

    def test_set(self, speaker: str) -> TestSet:
        """The same for every model of a speaker: never a recording that one of them heard."""
        if speaker in self._test_sets:
            return self._test_sets[speaker]
        heard = Recordings.of(contents(self.adaptation_set(speaker)))
        self._test_sets[speaker] = choose_test_set(self.utterances[speaker], heard, self._listener)
        return self._test_sets[speaker]

    @property
    def _options(self) -> dict[str, object]:
        return {"seed": self._recipe.seed, **self._recipe.corpus.options}

    @property
    def _download_target(self) -> Path:
        return Path(os.environ.get(DATA_VARIABLE) or self._exp.folder / "corpus")
