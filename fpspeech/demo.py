"""Where the embedded demo lies: a small base model and synthetic speakers, in the repository."""

from __future__ import annotations

from pathlib import Path


class DemoMissingError(ValueError):
    """The demo was wanted by default, but it is not here."""


def demo_folder() -> Path:
    """The folder `data/demo` of a checkout: below the working directory, else beside the package.

    Raises DemoMissingError where there is neither, as after an install without the repository.
    """
    for root in (Path.cwd(), Path(__file__).parent.parent):
        if (root / "data" / "demo" / "manifest.jsonl").is_file():
            return root / "data" / "demo"
    raise DemoMissingError(
        "the demo is not here: expected data/demo below this folder, as in a clone of the "
        "repository; run from there, or name your own with --model and --audio"
    )


def demo_model() -> Path:
    """The demo's base model, a Hugging Face folder."""
    return demo_folder() / "model"
