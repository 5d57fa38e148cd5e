"""The promise as properties of the source: no transcript is read to adapt, nothing learns."""

import ast
from pathlib import Path

import fpspeech

PACKAGE = Path(fpspeech.__file__).parent
BASELINES = {"baselines.py"}
ADAPTATION = [
    "listening.py",
    "sequential_listening.py",
    "generic.py",
    "normalize.py",
    "search_normalization.py",
    "evolve_front_end.py",
    "adapt_head.py",
    "refit_head.py",
    "output_layer.py",
    "allocate.py",
    "adaptation.py",
    "auto_sparsity.py",
    "halves.py",
    "personalize_speech.py",
    "personal.py",
    "models/wav2vec2.py",
]


def attributes(path: Path) -> set[str]:
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }


def test_backward_is_called_in_the_baselines_alone():
    for path in PACKAGE.rglob("*.py"):
        if path.name not in BASELINES:
            names = attributes(path)
            assert not names & {"backward", "requires_grad_", "optim"}, path


def test_adapting_never_reads_a_transcript():
    for name in ADAPTATION:
        path = PACKAGE / name
        assert "text" not in attributes(path), f"{name} reads .text"
        assert "with_text" not in path.read_text(), name
