"""The core imports torch and itself, nothing of speech, images, files or Hugging Face."""

import ast
import sys
from pathlib import Path

import fpspeech.pruning

CORE = Path(fpspeech.pruning.__file__).parent
ALLOWED = {"torch", "fpspeech.pruning", *sys.stdlib_module_names}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names.add(node.module)
    return names


def test_nothing_in_the_core_imports_anything_above_it():
    files = sorted(CORE.glob("*.py"))
    assert len(files) > 4
    for path in files:
        for name in imported(path):
            allowed = any(name == root or name.startswith(root + ".") for root in ALLOWED)
            assert allowed, f"{path.name} imports {name}"
