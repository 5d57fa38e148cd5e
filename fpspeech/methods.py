"""Methods by name: a score, then what goes with it, such as "obs+least_squares+owl+normalized".

After an @ stands whose recordings calibrate: "@another" (another speaker's) or "@generic" (those of
other people). They are the controls that show whether the user's own recordings matter.
"""

from __future__ import annotations

from dataclasses import replace

from fpspeech.config import ALLOCATIONS, Config
from fpspeech.pruning import PruningConfig, PruningError
from fpspeech.pruning.config import ORDERS, UPDATES

OWN = "own"
CALIBRATIONS = (OWN, "another", "generic")
NORMALIZED, EVOLVED, HEAD, REFIT = "normalized", "evolved", "head", "refit"
BIAS, SHRUNK = "bias", "shrunk"
_WORDS = (*UPDATES, *ORDERS, *ALLOCATIONS, NORMALIZED, EVOLVED, HEAD, REFIT, BIAS, SHRUNK)


def pruning_of(method: str, pruning: PruningConfig) -> PruningConfig:
    """The pruning settings of a method; see `config_of`. Words of other settings are refused."""
    config = Config(pruning=pruning, allocation="uniform", refit_head=False)
    found = config_of(method, config)
    if replace(found, pruning=pruning) != config or calibration_of(method) != OWN:
        raise PruningError(
            f"the method {method!r} says more than a score, an update and an order, which only "
            "methods for speech do"
        )
    return found.pruning


def config_of(method: str, config: Config) -> Config:
    """The settings of a method; what its name does not say stays as in `config`.

    But without an update the kept weights stay as they are, without an allocation every layer
    loses the same share, and what comes before pruning is done only where it is said. Words: an
    update, an order, an allocation, "bias" (`PruningConfig.bias`), "shrunk" (automatic shrinkage),
    "normalized" (as `config` says, or else searched), "evolved" (the front end), "head" (the
    output layer, to the speaker's words) and "refit" (the output layer, behind pruned layers).
    Raises PruningError for names that are not known.
    """
    score, *words = method.partition("@")[0].split("+")
    calibration_of(method)
    pruning = replace(config.pruning, score=score, update="none")
    changed = replace(
        config,
        normalize="none",
        evolve=False,
        adapt_head=False,
        refit_head=False,
        allocation="uniform",
    )
    for word in words:
        if word in UPDATES:
            pruning = replace(pruning, update=word)
        elif word in ORDERS:
            pruning = replace(pruning, order=word)
        elif word in ALLOCATIONS:
            changed = replace(changed, allocation=word)
        elif word == BIAS:
            pruning = replace(pruning, bias=True)
        elif word == SHRUNK:
            pruning = replace(pruning, shrinkage="auto")
        elif word == NORMALIZED:
            given = config.normalize
            changed = replace(changed, normalize="search" if given == "none" else given)
        elif word == EVOLVED:
            changed = replace(changed, evolve=True)
        elif word == HEAD:
            changed = replace(changed, adapt_head=True)
        elif word == REFIT:
            changed = replace(changed, refit_head=True)
        else:
            raise PruningError(
                f"the method {method!r} says {word!r}, which is not known: expected words among "
                f"{', '.join(dict.fromkeys(_WORDS))}"
            )
    return replace(changed, pruning=pruning)


def calibration_of(method: str) -> str:
    """Whose recordings calibrate, one of `CALIBRATIONS`; raises PruningError for others."""
    _, at, calibration = method.partition("@")
    if not at:
        return OWN
    if calibration not in CALIBRATIONS:
        raise PruningError(
            f"the method {method!r} is calibrated on {calibration!r}: expected one of "
            f"{', '.join(CALIBRATIONS)}"
        )
    return calibration
