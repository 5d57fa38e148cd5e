"""Speaker normalisation of a speech model: the user's early features made like other people's.

The sites are folded one after the other, in the order they run: each is measured behind those
that are in force already, so that what one puts right is not put right again by the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from fpspeech.generic import Generic
from fpspeech.listening import NothingHeardError
from fpspeech.models import SpeechModel
from fpspeech.pruning import (
    Applied,
    FeatureObserver,
    PruningError,
    Site,
    apply_masks,
    folded,
    matching_map,
)
from fpspeech.pruning.normalization import check_generic


@dataclass(frozen=True)
class Normalization:
    """Where features are normalised, and how strongly.

    strengths: (name of a group of sites, strength from 0 to 1) pairs; see `SpeechModel.sites`.
    full: match the full covariance, not only each feature's variance.
    """

    strengths: tuple[tuple[str, float], ...] = ()
    full: bool = False

    def __post_init__(self) -> None:
        for name, strength in self.strengths:
            if not 0 <= strength <= 1:
                raise PruningError(
                    f"normalisation of {name}: expected a strength from 0 to 1, found {strength:g}"
                )

    @property
    def active(self) -> dict[str, float]:
        """The groups that are normalised at all; of a group given twice the last counts."""
        return {name: strength for name, strength in dict(self.strengths).items() if strength > 0}


@dataclass(frozen=True)
class Normalized:
    """What normalising made of a model: changed tensors, by their names in the state dict.

    passes: how often the windows were run.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    passes: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of the changed tensors, empty where there are none."""
        if not self.values:
            return ""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.values.items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def apply(self, model: SpeechModel) -> Applied:
        """Puts the tensors in force; use as a context manager, or call `restore()`."""
        return apply_masks([], {}, network=model.network, values=self.values)


def normalize(
    model: SpeechModel,
    windows: Iterable[Tensor],
    normalization: Normalization,
    generic: Generic,
) -> Normalized:
    """Folds the normalisation of a speaker, whose windows these are, into the model's weights.

    windows: float32 samples, shape (samples,), iterated again and again: they run once a
    site, through the part of the model that hears. The model is left as it was. Raises
    PruningError for a group of sites that the model does not have, or that `generic` has no
    moments of, NothingHeardError where there is no window.
    """
    active = normalization.active
    for name in active:
        if name not in model.sites:
            raise PruningError(
                f"{model.source.id} has no site {name!r} to normalise: expected one of "
                f"{', '.join(model.sites)}"
            )
    check_generic([site for name in active for site in model.sites[name]], generic.moments)
    values: dict[str, Tensor] = {}
    passes = 0
    with _put_back(model) as in_force:
        for name, group in model.sites.items():
            for site in group if name in active else ():
                values |= _fold(model, windows, site, active[name], normalization.full, generic)
                in_force(values)
                passes += 1
    return Normalized(values, passes)


def _fold(
    model: SpeechModel,
    windows: Iterable[Tensor],
    site: Site,
    strength: float,
    full: bool,
    generic: Generic,
) -> dict[str, Tensor]:
    observer = FeatureObserver(model.network, [site])
    for window in windows:
        model.listen([window], observer)
    user = observer.moments().get(site.name)
    if user is None:
        raise NothingHeardError(
            f"nothing to listen to: the features of {site.name} cannot be normalised without a "
            "window of audio; expected recordings of speech"
        )
    # A norm that something else reads too takes no full map.
    module = model.network.get_submodule(site.name)
    full = full and (bool(site.readers) or not isinstance(module, nn.LayerNorm))
    feature_map = matching_map(user, generic.moments[site.name], strength, full=full)
    return folded(model.network, site, feature_map)


@contextmanager
def _put_back(model: SpeechModel) -> Iterator[_InForce]:
    in_force = _InForce(model)
    try:
        yield in_force
    finally:
        in_force({})


class _InForce:
    """The values in force; calling it with others replaces them."""

    def __init__(self, model: SpeechModel):
        self._model = model
        self._applied: Applied | None = None

    def __call__(self, values: Mapping[str, Tensor]) -> None:
        if self._applied is not None:
            self._applied.restore()
        self._applied = Normalized(values).apply(self._model)
