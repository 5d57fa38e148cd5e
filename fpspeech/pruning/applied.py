"""Masks and updated weights put in force on a model, and taken back bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from weakref import WeakSet

import torch
from torch import Tensor, nn

from fpspeech.pruning.layers import PrunableLayer, PruningError

# A second mask on top would make `restore` depend on the order, so it is refused.
_MASKED: WeakSet[nn.Module] = WeakSet()


class Applied:
    """Masks and updated values that are in force on a model; `restore()` undoes them exactly."""

    def __init__(
        self,
        layers: Sequence[PrunableLayer],
        masks: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
        kept: Mapping[str, Tensor],
    ):
        _check_masks(layers, masks)
        _check_kept(masks, kept)
        _check_values(state, values)
        self._layers = tuple(layer for layer in layers if layer.name in masks)
        for layer in self._layers:
            if layer.module in _MASKED:
                raise PruningError(f"{layer.name} carries a mask already: restore it first")
        _MASKED.update(layer.module for layer in self._layers)
        self._weights = [
            {name: tensor.clone() for name, tensor in layer.stored().items()}
            for layer in self._layers
        ]
        self._values = [(state[name], state[name].clone()) for name in values]
        self._in_force = True
        with torch.no_grad():
            for layer in self._layers:
                weight = layer.weight()
                mask = masks[layer.name].to(weight.device)
                if layer.name in kept:
                    new = kept[layer.name].to(weight)
                    layer.assign(torch.zeros_like(weight).masked_scatter(mask, new))
                else:  # not a product: -w·0 is -0 and inf·0 is NaN
                    layer.assign(weight.masked_fill(~mask, 0))
            for name, value in values.items():
                state[name].copy_(value)

    def restore(self) -> None:
        """Puts everything back bit for bit; a second call does nothing."""
        if not self._in_force:
            return
        for layer, stored in zip(self._layers, self._weights, strict=True):
            layer.put_back(stored)
            _MASKED.discard(layer.module)
        with torch.no_grad():
            for tensor, before in self._values:
                tensor.copy_(before)
        self._in_force = False

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()


def apply_masks(
    layers: Sequence[PrunableLayer],
    masks: Mapping[str, Tensor],
    *,
    network: nn.Module | None = None,
    values: Mapping[str, Tensor] | None = None,
    kept: Mapping[str, Tensor] | None = None,
) -> Applied:
    """Sets the pruned weights to zero in place; use as a context manager or call `restore()`.

    values: tensors that an update computed (biases, BatchNorm statistics), by their names in
    the state dict of `network`, put in force with the masks and restored with them. kept: what
    the kept weights become, by layer name, float16 in row-major order.
    Raises PruningError when a mask or a value does not fit, or a layer carries a mask already.
    """
    state = network.state_dict() if network is not None else {}
    return Applied(layers, masks, state, values or {}, kept or {})


def _check_kept(masks: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    for name, weights in kept.items():
        expected = int(masks[name].sum()) if name in masks else None
        if weights.numel() != expected:
            raise PruningError(
                f"there are {weights.numel()} kept weights for {name}, "
                + ("which has no mask" if expected is None else f"its mask keeps {expected}")
            )


def _check_values(state: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        if name not in state:
            raise PruningError(f"there is a value for {name!r}, which the model does not have")
        if state[name].shape != value.shape:
            raise PruningError(
                f"the value for {name} has shape {tuple(value.shape)}, the model's "
                f"{tuple(state[name].shape)}: they belong to different models"
            )


def _check_masks(layers: Sequence[PrunableLayer], masks: Mapping[str, Tensor]) -> None:
    shapes = {layer.name: layer.shape for layer in layers}
    for name, mask in masks.items():
        if name not in shapes:
            raise PruningError(f"there is a mask for {name!r}, but the model has no such layer")
        if tuple(mask.shape) != shapes[name]:
            raise PruningError(
                f"the mask of {name} has shape {tuple(mask.shape)}, the layer's weight "
                f"{shapes[name]} (groups, outputs, inputs): they belong to different models"
            )
