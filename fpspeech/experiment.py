"""The folder of an experiment: what it is held to, and what is called what in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fpspeech.recipe_file import RecipeError

MANIFEST, SETTINGS_FILE = "manifest.jsonl", "settings.json"


class Experiment:
    """A folder that holds results of one corpus, one model and one way to prune.

    Whose results they are and at which sparsities may differ from run to run: runs add up.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._settled: dict[str, Any] = {}

    @property
    def manifest(self) -> Path:
        """What is adapted and tested on."""
        return self.folder / MANIFEST

    def settle(self, now: Mapping[str, Any]) -> None:
        """Holds the folder to these settings; raises RecipeError where it holds others."""
        path = self.folder / SETTINGS_FILE
        before = read_json(path) if path.exists() else {}
        for name, value in now.items():
            if name in before and before[name] != value:
                raise RecipeError(
                    f"{self.folder} holds an experiment whose {name} is {before[name]!r}, and the "
                    f"recipe now says {value!r}: give another folder with --exp, or remove this one"
                )
        self._settled = {**before, **self._settled, **now}

    def keep_settings(self) -> None:
        """Writes what the folder is held to, once there is something in it."""
        if self.manifest.exists():
            write_json(self.folder / SETTINGS_FILE, self._settled)

    def settings(self) -> dict[str, Any]:
        """What the folder is held to."""
        return read_json(self.folder / SETTINGS_FILE)

    def personal(self, name: str, sparsity: float) -> Path:
        """Where the personal model of a speaker or user is."""
        return self.folder / "personal" / file_name(name) / amount(sparsity)

    def result(self, name: str, system: str) -> Path:
        """Where the result of a model on a speaker or user is."""
        return self.folder / "results" / file_name(name) / system


def file_name(name: str) -> str:
    """A name for a folder: nothing in it leads out of the experiment's."""
    quoted = quote(name, safe=" ")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def amount(sparsity: float) -> str:
    """What a sparsity is called in the names of files."""
    return f"sparsity-{sparsity:g}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises RecipeError, naming the file, where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise RecipeError(f"{path} holds no JSON object: remove it")
    return value


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, path)
