"""What the recipes for speech and for images have in common: six stages, run in order.

0 data and manifest (and the base model, where the recipe trains one), 1 dense, 2 personalize, 3
controls, 4 report, 5 push. A stage passes over what it finds done.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fpspeech.recipe_file import RecipeError

STAGES = ("data", "dense", "personalize", "controls", "report", "push")
LAST = len(STAGES) - 1
STDERR = 2  # results alone go to standard output

Say = Callable[[str], None]
"""Is told what goes on, a line at a time."""


def silently(line: str) -> None:
    """Says nothing."""


def require_stages(first: int, last: int) -> None:
    """Raises RecipeError unless these are stages, the first not after the last."""
    if not 0 <= first <= last <= LAST:
        raise RecipeError(
            f"expected stages among 0 to {LAST} ({', '.join(STAGES)}), the first before the last; "
            f"found {first} to {last}"
        )


def uses_model(first: int, last: int) -> bool:
    """Whether one of these stages runs the base model."""
    return first <= STAGES.index("controls") and last >= STAGES.index("dense")


def run_stages(
    stages: Sequence[Callable[[], None]],
    first: int,
    last: int,
    before_each: Callable[[int], None],
    say: Say,
) -> None:
    """Runs the stages from `first` to `last`."""
    for number in range(first, last + 1):
        say(f"stage {number}: {STAGES[number]}")
        before_each(number)
        stages[number]()


def is_model(folder: str) -> bool:
    """Whether a base model lies there, written to its end."""
    return (Path(folder) / "config.json").is_file()


def run_module(module: str, target: str, exp: Path, data_dir: str | Path | None, say: Say) -> None:
    """Runs a module of the recipes that makes `target`, as `python -m MODULE TARGET --exp EXP`.

    What it says goes where the errors go. data_dir: passed on where it is known. Raises
    RecipeError where it fails.
    """
    command = [sys.executable, "-m", module, target, "--exp", str(exp)]
    if data_dir is not None:
        command += ["--data-dir", str(data_dir)]
    say(f"{module}: {target}, where it is not there")
    done = subprocess.run(command, stdout=STDERR, check=False)
    if done.returncode:
        raise RecipeError(
            f"{module} failed (exit status {done.returncode}) and {target} was not made: see what "
            "it said, and run from the folder that holds `recipes`"
        )
