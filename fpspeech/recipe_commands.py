"""What `fpspeech run` and `fpspeech prepare` do: which kind of recipe it is, and its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fpspeech.corpora import SpeakerSummary, find_corpus, summarise_speakers, write_manifest
from fpspeech.recipe_corpus import corpus_options, find_or_download, read_corpus
from fpspeech.recipe_file import RecipeError, kind_of_recipe
from fpspeech.recipe_stages import Say


def run_file(
    path: Path, stage: int, stop_stage: int, overrides: Mapping[str, Any], say: Say
) -> Path:
    """Runs the stages of a recipe file, for speech or for photos; returns the overall table.

    overrides: of the command line, None for what was not given. Raises RecipeError for an
    override that is of the other kind of recipe, and the errors of the stages.
    """
    if kind_of_recipe(path) == "speech":
        from fpspeech.speech_recipe import read_speech_recipe
        from fpspeech.speech_stages import run_speech_recipe

        given = _without(overrides, "users", path, "for speech: name speakers with --speaker")
        folder = run_speech_recipe(read_speech_recipe(path), stage, stop_stage, given, say=say)
    else:
        from fpspeech.image_stages import run_image_recipe
        from fpspeech.recipe import read_recipe

        given = _without(overrides, "speakers", path, "for photos: name users with --user")
        folder = run_image_recipe(read_recipe(path), stage, stop_stage, given, say=say)
    return folder / "report" / "overall.md"


def prepare_corpus(
    name: str,
    out: Path,
    data_dir: Path | None,
    download_to: Path | None,
    options: Sequence[str],
    seed: int,
    say: Say,
) -> tuple[str, list[SpeakerSummary]]:
    """Writes the manifest of a corpus; returns its title and who is in it.

    options: NAME=VALUE, of the corpus. download_to: where to download what is not found. Raises
    RecipeError and the errors of corpora.
    """
    corpus = find_corpus(name)
    given = {"seed": seed, **corpus_options(options)}
    root = find_or_download(corpus, data_dir, given, download_to, say)
    utterances = read_corpus(corpus, root, given)
    write_manifest(out, utterances)
    return corpus.title, summarise_speakers(utterances)


def _without(overrides: Mapping[str, Any], name: str, path: Path, remedy: str) -> dict[str, Any]:
    if overrides.get(name) is not None:
        raise RecipeError(f"{path} is a recipe {remedy}")
    return {key: value for key, value in overrides.items() if key != name}
