"""Stage 5: personal models to the Hugging Face Hub, private and under numbers instead of names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from fpspeech.experiment import read_json, write_json
from fpspeech.personal import SETTINGS
from fpspeech.recipe_file import RecipeError

PUSHED = "pushed.json"


class Hub(Protocol):
    """What pushing needs of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Makes a repository where there is none."""

    def upload_folder(self, *, repo_id: str, folder_path: Path, path_in_repo: str) -> Any:
        """Uploads the files of a folder."""


def push_personal(
    repository: str, folders: Mapping[str, Path], exp: Path, hub: Hub | None = None
) -> None:
    """Uploads personal models that are not there yet; `exp/pushed.json` keeps account.

    folders: of personal models, by what they are called in the repository, which is made private.
    hub: in the place of the Hugging Face Hub. Raises RecipeError where a model is missing or not
    all can be uploaded.
    """
    for folder in folders.values():
        if not (folder / SETTINGS).exists():
            raise RecipeError(f"{folder}: expected a personal model, found none: run stage 2")
    record = exp / PUSHED
    pushed = read_json(record) if record.exists() else {}
    done = pushed.setdefault(repository, {})
    left = [(name, folder) for name, folder in folders.items() if name not in done]
    if not left:
        return
    hub = hub or _hugging_face()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        for name, folder in left:
            hub.upload_folder(repo_id=repository, folder_path=folder, path_in_repo=name)
            done[name] = str(folder.relative_to(exp))
            write_json(record, pushed)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise RecipeError(
            f"{repository}: not all could be uploaded ({type(error).__name__}: {error}); "
            "check the name, the network and `hf auth whoami`, and run stage 5 again: it "
            "goes on with what is missing"
        ) from error


def _hugging_face() -> Hub:
    from huggingface_hub import HfApi

    return HfApi()
