"""What `import fpspeech` offers."""

import pkgutil
import subprocess
import sys

import fpspeech


def test_every_name_is_there_and_stays_what_it_is():
    """No module of the package hides a function of the same name once it has been imported."""
    modules = {module.name for module in pkgutil.iter_modules(fpspeech.__path__)}
    assert not modules & set(fpspeech.__all__)
    for name in fpspeech.__all__:
        first = getattr(fpspeech, name)
        assert callable(first)
        assert getattr(fpspeech, name) is first


def test_nothing_is_loaded_before_it_is_used():
    loaded = "import sys, fpspeech, fpspeech.cli; print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", loaded], check=True, capture_output=True, text=True
    )
    assert found.stdout.strip() == "False"
