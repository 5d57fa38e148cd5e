"""The corpus of a recipe or of `fpspeech prepare`: found, or downloaded, and read with options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fpspeech.corpora import Corpus, CorpusNotFound, Utterance
from fpspeech.recipe_file import RecipeError

Value = TypeVar("Value")


def read_corpus(
    corpus: Corpus, data_dir: str | Path | None, options: Mapping[str, Any]
) -> list[Utterance]:
    """The corpus' utterances; raises RecipeError for an option of a wrong value or type.

    Raises ManifestError, and CorpusNotFound with how to get the corpus.
    """
    return _with(corpus, options, lambda: corpus.utterances(data_dir, **options))


def find_or_download(
    corpus: Corpus,
    data_dir: str | Path | None,
    options: Mapping[str, Any],
    download_to: Path | None,
    say: Callable[[str], None],
) -> Path:
    """The corpus' root: where `data_dir` says, or downloaded where it is not found there.

    download_to: the folder to download to, None for never. Raises as `read_corpus` does.
    """
    try:
        return _with(corpus, options, lambda: corpus.root(data_dir, **options))
    except CorpusNotFound:
        if download_to is None or corpus.download is None:
            raise
    say(f"downloading {corpus.title} ({corpus.licence}) to {download_to}")
    return _with(corpus, options, lambda: corpus.fetch(download_to, **options))


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


def _with(corpus: Corpus, options: Mapping[str, Any], run: Callable[[], Value]) -> Value:
    try:
        return run()
    except (TypeError, ValueError) as error:
        if type(error).__module__.startswith("fpspeech."):
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise RecipeError(f"{corpus.name} cannot be read with {given}: {error}") from error
