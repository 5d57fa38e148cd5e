"""Speaker normalisation: the user's moments at an early place matched to those of other people.

Recognisers have long normalised each speaker's features (cepstral mean and variance
normalisation; constrained MLLR: Gales 1998). Here the features are those inside the network: with
the user's mean and covariance (m_u, Σ_u) at a place and generic ones (m_g, Σ_g), the features x
become

    y = m_u + s·(m_g - m_u) + ((1 - s)·I + s·A)(x - m_u)

where A is the optimal transport map between Gaussians of these covariances, diagonal
A = (σ_g/σ_u) or full A = Σ_u^-½ (Σ_u^½ Σ_g Σ_u^½)^½ Σ_u^-½, and s the strength; a strength between
0 and 1 is a point on the path of least transport (McCann 1997). At s = 1 the user has the generic
moments. The map is affine, so it folds exactly into the weights that make the features, or into
those that read them, and the architecture stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fpspeech.pruning.layers import PruningError
from fpspeech.pruning.statistics import Valid

SHRINK = 0.01
"""Share of the mean variance added to both covariances of a full map, which inverts one."""

LARGEST_SCALE = 4.0
"""No feature is stretched or squeezed by more: a channel at rest would become noise."""


@dataclass(frozen=True)
class Site:
    """A place whose features can be normalised: what the module `name` puts out.

    The module is a LayerNorm, or a Linear or Conv1d. readers: Linear modules that are all that
    reads it; a full map of a LayerNorm folds into them.
    """

    name: str
    readers: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeatureMoments:
    """Mean and covariance of the features at a site, over positions.

    mean: shape (features,). covariance: (features, features), divided by `count`. float64.
    """

    count: int
    mean: Tensor
    covariance: Tensor

    @property
    def variance(self) -> Tensor:
        """The diagonal of the covariance, shape (features,)."""
        return self.covariance.diagonal()


@dataclass(frozen=True)
class FeatureMap:
    """x -> matrix·x + shift, where matrix is (features, features), or (features,) if diagonal."""

    matrix: Tensor
    shift: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Maps features, shape (..., features)."""
        matrix = self.matrix.to(features)
        mapped = features * matrix if matrix.dim() == 1 else features @ matrix.T
        return mapped + self.shift.to(features)


def matching_map(
    user: FeatureMoments, generic: FeatureMoments, strength: float = 1.0, *, full: bool = False
) -> FeatureMap:
    """The map of the formula at the top of this module.

    strength: 0 leaves the features alone, 1 gives them the generic moments (up to `SHRINK` and
    `LARGEST_SCALE`). Raises PruningError for moments of different sizes and strengths out of range.
    """
    if user.mean.shape != generic.mean.shape:
        raise PruningError(
            f"the user's moments are of {user.mean.numel()} features, the generic ones of "
            f"{generic.mean.numel()}: they were measured on different models"
        )
    if not 0 <= strength <= 1:
        raise PruningError(f"expected a strength from 0 to 1, found {strength:g}")
    if full:
        transport = _transport(user.covariance, generic.covariance)
        matrix = (1 - strength) * torch.eye(len(transport), dtype=transport.dtype)
        matrix = matrix + strength * transport
        moved = matrix @ user.mean
    else:
        tiny = torch.finfo(user.mean.dtype).tiny
        ratio = (generic.variance / user.variance.clamp_min(tiny)).sqrt()
        matrix = 1 - strength + strength * ratio.clamp(1 / LARGEST_SCALE, LARGEST_SCALE)
        moved = matrix * user.mean
    target = user.mean + strength * (generic.mean - user.mean)
    return FeatureMap(matrix, target - moved)


def _transport(user: Tensor, generic: Tensor) -> Tensor:
    """The symmetric map that takes covariance `user` to `generic` (Olkin, Pukelsheim 1982)."""
    floor = SHRINK * 0.5 * float(user.diagonal().mean() + generic.diagonal().mean())
    identity = torch.eye(len(user), dtype=user.dtype)
    root, inverse_root = _roots(user + floor * identity)
    middle, _ = _roots(root @ (generic + floor * identity) @ root)
    transport = inverse_root @ middle @ inverse_root
    values, vectors = torch.linalg.eigh((transport + transport.T) / 2)
    values = values.clamp(1 / LARGEST_SCALE, LARGEST_SCALE)
    bounded: Tensor = (vectors * values) @ vectors.T
    return bounded


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root of a positive definite matrix, and its inverse."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


class FeatureObserver:
    """Collects the moments of what sites put out while a model runs, each position once.

    It is used like an `Observer`: nothing is attached to the network outside `counting()`.
    """

    def __init__(self, network: nn.Module, sites: Sequence[Site]):
        self._modules = {site.name: _module(network, site.name) for site in sites}
        self._moments: dict[str, tuple[int, Tensor, Tensor]] = {}  # count, mean, scatter

    @contextmanager
    def counting(self, valid: Valid | None = None) -> Iterator[None]:
        """Counts every forward pass inside the block; valid: as in `Observer.counting`."""
        handles = []
        try:
            for name, module in self._modules.items():
                lengths = valid(name) if valid is not None else None
                handles.append(module.register_forward_hook(self._hook(name, lengths)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def moments(self) -> dict[str, FeatureMoments]:
        """The moments so far, by site; raises PruningError where features were not finite."""
        found = {}
        for name, (count, mean, scatter) in self._moments.items():
            covariance = scatter / count
            if not bool(torch.isfinite(covariance).all()):
                raise PruningError(f"what {name} put out was NaN or infinite: check the data")
            found[name] = FeatureMoments(count, mean, covariance)
        return found

    def _hook(self, name: str, lengths: Sequence[int] | None) -> Callable[..., None]:
        def count(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            features = output.transpose(1, 2) if isinstance(module, nn.Conv1d) else output
            items = [features] if lengths is None else _cut(features, lengths)
            for item in items:
                rows = item.detach().reshape(-1, item.shape[-1]).float().cpu()
                if len(rows):
                    self._moments[name] = _joined(self._moments.get(name), rows)

        return count


def _joined(before: tuple[int, Tensor, Tensor] | None, rows: Tensor) -> tuple[int, Tensor, Tensor]:
    """Count, mean and scatter with more rows (Chan, Golub, LeVeque 1983).

    Around the mean, since Σxxᵀ - n·m·mᵀ leaves nothing of a small variance far from zero. Products
    within a pass in float32, all else in float64.
    """
    mean = rows.double().mean(0)
    centred = rows - mean.float()
    scatter = (centred.T @ centred).double()
    if before is None:
        return len(rows), mean, scatter
    count, old, old_scatter = before
    apart = mean - old
    both = count + len(rows)
    scatter = old_scatter + scatter + torch.outer(apart, apart) * (count * len(rows) / both)
    return both, old + apart * (len(rows) / both), scatter


def _cut(features: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    return [item[:length] for item, length in zip(features, lengths, strict=True)]


def folded(network: nn.Module, site: Site, feature_map: FeatureMap) -> dict[str, Tensor]:
    """The tensors, by their names in the state dict, with which the site's features are mapped.

    For the network exactly as it is: put the result in force (`apply_masks(..., values=)`) before
    another site is folded. A diagonal map goes into the module itself; a full one too where it is
    a Linear or Conv1d, and into the readers of a LayerNorm. A reader without a bias loses the
    shift: this is exact for the keys of an attention, since the same number is then added to every
    score of a query and the softmax does not see it. Raises PruningError where it cannot be folded.
    """
    module = _module(network, site.name)
    if isinstance(module, nn.LayerNorm) and feature_map.matrix.dim() == 2:
        return _into_readers(network, site, feature_map)
    weight, bias = _weight_and_bias(site.name, module)
    if bias is None:
        raise PruningError(
            f"{site.name} has no bias, and its features cannot be shifted without one: choose "
            "another place to normalise"
        )
    matrix = feature_map.matrix.to(torch.float64)
    if matrix.dim() == 2 and getattr(module, "groups", 1) > 1:
        raise PruningError(
            f"{site.name} has {module.groups} groups that read different inputs, so a full map "
            "cannot be folded into it: use a diagonal one"
        )
    rows = weight.double().flatten(1) if weight.dim() > 1 else weight.double()
    if matrix.dim() == 2:
        rows, moved = matrix @ rows, matrix @ bias.double()
    else:
        rows = rows * (matrix if rows.dim() == 1 else matrix[:, None])
        moved = matrix * bias.double()
    return {
        f"{site.name}.weight": rows.reshape(weight.shape).to(weight),
        f"{site.name}.bias": (moved + feature_map.shift.to(torch.float64)).to(bias),
    }


def _into_readers(network: nn.Module, site: Site, feature_map: FeatureMap) -> dict[str, Tensor]:
    if not site.readers:
        raise PruningError(
            f"what reads {site.name} is not known, so a full map cannot be folded: use a "
            "diagonal one"
        )
    matrix = feature_map.matrix.to(torch.float64)
    values = {}
    for name in site.readers:
        weight, bias = _weight_and_bias(name, _module(network, name))
        values[f"{name}.weight"] = (weight.double() @ matrix).to(weight)
        if bias is not None:
            shift = weight.double() @ feature_map.shift.to(torch.float64)
            values[f"{name}.bias"] = (bias.double() + shift).to(bias)
    return values


def _weight_and_bias(name: str, module: nn.Module) -> tuple[Tensor, Tensor | None]:
    if not isinstance(module, (nn.LayerNorm, nn.Linear, nn.Conv1d)) or module.weight is None:
        raise PruningError(
            f"{name} is a {type(module).__name__}: expected a LayerNorm, Linear or Conv1d "
            "with a weight"
        )
    bias = None if module.bias is None else module.bias.detach().cpu()
    return module.weight.detach().cpu(), bias


def _module(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError:
        raise PruningError(
            f"the network has no module {name!r}, where features should be normalised"
        ) from None


def check_generic(sites: Sequence[Site], generic: Mapping[str, FeatureMoments]) -> None:
    """Raises PruningError, naming the site, where generic moments are missing."""
    for site in sites:
        if site.name not in generic:
            raise PruningError(
                f"there are no generic moments for {site.name}: make them with `fpspeech generic` "
                f"for this base model (found {', '.join(generic) or 'none'})"
            )
