"""Which weights can be pruned, each seen as a matrix per group: (groups, outputs, inputs).

A row of that matrix is one output unit; its columns are the inputs the unit reads. For a
convolution they are the unfolded inputs, channel-major and kernel-minor, which is the order of
`weight.reshape(groups, out // groups, -1)` and of `torch.nn.functional.unfold`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)


class PruningError(ValueError):
    """Something about the model, the statistics or the settings that pruning cannot work with."""


@dataclass(frozen=True)
class PrunableLayer:
    """One layer of a model whose weight can be pruned.

    name: qualified module name. module: Linear, Conv1d or Conv2d, weight-normed or plain.
    tokens: the positions of its input are tokens, which are not alike as neighbouring frames are.
    """

    name: str
    module: nn.Module
    tokens: bool = False

    @property
    def groups(self) -> int:
        """Groups of a grouped convolution; 1 elsewhere."""
        return int(getattr(self.module, "groups", 1))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, outputs per group, inputs per output)."""
        weight = next(iter(self.stored().values())) if self._norm is None else self._norm.v
        outputs = weight.shape[0]
        return self.groups, outputs // self.groups, weight[0].numel()

    @property
    def size(self) -> int:
        """Number of weights."""
        groups, outputs, inputs = self.shape
        return groups * outputs * inputs

    def weight(self) -> Tensor:
        """The weight the layer computes with, shape (groups, outputs, inputs), detached.

        A view of the parameter where it is plain; recomputed where it is weight-normed.
        """
        norm = self._norm
        if norm is None:
            plain: Tensor = self.module.weight  # type: ignore[assignment]
            weight = plain.detach()
        else:
            weight = torch._weight_norm(norm.v.detach(), norm.g.detach(), norm.dim)
        return weight.reshape(self.shape)

    def stored(self) -> dict[str, Tensor]:
        """The tensors that hold the weight, by their names in the layer's state dict, detached."""
        if self._norm is None:
            return {"weight": self.module.weight.detach()}  # type: ignore[operator]
        return {
            self._norm.g_name: self._norm.g.detach(),
            self._norm.v_name: self._norm.v.detach(),
        }

    @torch.no_grad()
    def assign(self, weight: Tensor) -> None:
        """Makes the layer compute with `weight`, shape (groups, outputs, inputs).

        Zeros stay exact. Under weight normalisation g = ‖w‖ and v = w; where a whole normalised
        slice is zero, v is set to one and g to zero, because 0/0 would make the slice NaN.
        """
        norm = self._norm
        if norm is None:
            plain: Tensor = self.module.weight  # type: ignore[assignment]
            plain.copy_(weight.reshape(plain.shape))
            return
        v = weight.reshape(norm.v.shape)
        g = torch.norm_except_dim(v, 2, norm.dim)
        norm.g.copy_(g)
        norm.v.copy_(torch.where(g == 0, torch.ones_like(v), v))
        norm.refresh(self.module)

    @torch.no_grad()
    def put_back(self, stored: Mapping[str, Tensor]) -> None:
        """Writes tensors taken by `stored()` back, bit for bit."""
        for name, tensor in self.stored().items():
            tensor.copy_(stored[name])
        if self._norm is not None:
            self._norm.refresh(self.module)

    @property
    def _norm(self) -> _NormedWeight | None:
        return _normed_weight(self.module)


@dataclass(frozen=True)
class _NormedWeight:
    """A weight stored as direction v and length g, with the names it has in the state dict."""

    g: Tensor
    v: Tensor
    dim: int
    g_name: str
    v_name: str

    def refresh(self, module: nn.Module) -> None:
        # The older weight norm keeps the product as a plain attribute until the next forward.
        if self.g_name == "weight_g":
            module.weight = torch._weight_norm(self.v.detach(), self.g.detach(), self.dim)


def _normed_weight(module: nn.Module) -> _NormedWeight | None:
    if parametrize.is_parametrized(module, "weight"):
        steps = module.parametrizations.weight  # type: ignore[union-attr]
        return _NormedWeight(
            g=steps.original0,  # type: ignore[arg-type,union-attr]
            v=steps.original1,  # type: ignore[arg-type,union-attr]
            dim=steps[0].dim,  # type: ignore[arg-type,index]
            g_name="parametrizations.weight.original0",
            v_name="parametrizations.weight.original1",
        )
    if hook := _older_weight_norm(module):
        return _NormedWeight(
            g=module.weight_g,  # type: ignore[arg-type]
            v=module.weight_v,  # type: ignore[arg-type]
            dim=-1 if hook.dim is None else hook.dim,
            g_name="weight_g",
            v_name="weight_v",
        )
    return None


def _older_weight_norm(module: nn.Module) -> WeightNorm | None:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == "weight":
            return hook
    return None


@dataclass(frozen=True)
class Exclusion:
    """A weight that is left dense, and why."""

    name: str
    reason: str
    size: int


@dataclass(frozen=True)
class Selection:
    """The layers of a model that are pruned and those that are not."""

    layers: tuple[PrunableLayer, ...]
    excluded: tuple[Exclusion, ...]

    @property
    def size(self) -> int:
        """Number of weights in the layers that are pruned."""
        return sum(layer.size for layer in self.layers)


def select_layers(model: nn.Module, exclude: Mapping[str, str] | None = None) -> Selection:
    """Finds every weight that can be pruned and lists every matrix that cannot, with the reason.

    exclude: patterns of module names (as in `fnmatch`) -> the reason for leaving them dense.
    Raises PruningError when a pattern names no module, or when nothing is left to prune.
    """
    exclude = dict(exclude or {})
    unused = set(exclude)
    owners = _owners(model)
    layers: list[PrunableLayer] = []
    excluded: list[Exclusion] = []
    for name, module in model.named_modules():
        matching = [pattern for pattern in exclude if fnmatchcase(name, pattern)]
        unused.difference_update(matching)
        # A parametrization's own tensors belong to the layer that carries it.
        if isinstance(module, parametrize.ParametrizationList):
            continue
        size = _matrix_size(module)
        if size == 0:
            continue
        reason = exclude[matching[0]] if matching else _unsupported(name, module, owners)
        if reason is None:
            layers.append(PrunableLayer(name, module))
        else:
            excluded.append(Exclusion(name, reason, size))
    if unused:
        raise PruningError(
            f"no module is named {sorted(unused)}: exclusions are patterns of module names such "
            "as 'lm_head' or 'encoder.layers.*'; see model.named_modules()"
        )
    if not layers:
        raise PruningError(
            f"nothing to prune in {type(model).__name__}: expected Linear, Conv1d or Conv2d "
            f"layers, found {[(e.name, e.reason) for e in excluded] or 'none'}"
        )
    return Selection(tuple(layers), tuple(excluded))


def _matrix_size(module: nn.Module) -> int:
    """Weights in this module's own matrices (two dimensions or more), tied ones included."""
    if _normed_weight_or_foreign(module):
        own = [p for p in module.parameters() if p.dim() > 1]
        return max(p.numel() for p in own) if own else 0
    return sum(p.numel() for p in module.parameters(recurse=False) if p.dim() > 1)


def _normed_weight_or_foreign(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module, "weight") or bool(_older_weight_norm(module))


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Names of the modules that hold each parameter; more than one name means tied weights."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return owners


def _unsupported(name: str, module: nn.Module, owners: Mapping[int, list[str]]) -> str | None:
    if not isinstance(module, PRUNABLE):
        return f"{type(module).__name__} is not a Linear, Conv1d or Conv2d"
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "torch.nn.MultiheadAttention uses its weight without calling the layer"
    if parametrize.is_parametrized(module, "weight"):
        steps = module.parametrizations.weight  # type: ignore[union-attr]
        kinds = [type(step).__name__ for step in steps]  # type: ignore[union-attr]
        if len(kinds) != 1 or not isinstance(steps[0], _WeightNorm):  # type: ignore[index]
            return f"its weight is parametrized by {', '.join(kinds)}, not by weight norm alone"
        return None
    if _older_weight_norm(module):
        return None
    weight = module.weight
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not floating point"
    others = [owner for owner in owners[id(weight)] if owner != name]
    if others:
        return f"its weight is tied to {', '.join(others)}"
    return None
