"""One layer from its statistics to its mask, its weights and its bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fpspeech.pruning.alps import alps
from fpspeech.pruning.config import PruningConfig
from fpspeech.pruning.layers import PrunableLayer, PruningError
from fpspeech.pruning.least_squares import (
    can_fit,
    centred,
    compensated_bias,
    masked_least_squares,
    unmasked_least_squares,
)
from fpspeech.pruning.sparsegpt import sparsegpt
from fpspeech.pruning.statistics import InputStatistics


@dataclass(frozen=True)
class UpdatedLayer:
    """What became of a layer; None where its weights or its bias stay.

    mask: True where kept, (groups, outputs, inputs). kept: the kept weights in row-major order,
    float16 as they are stored. bias: float32.
    """

    mask: Tensor
    kept: Tensor | None
    bias: Tensor | None


def is_updated(layer: PrunableLayer, found: InputStatistics | None, config: PruningConfig) -> bool:
    """Whether the layer's weights change: not where its Σxxᵀ is too large to count.

    Raises PruningError when the products are missing though they could be counted.
    """
    if config.update == "none":
        return False
    if found is not None and found.products is not None:
        return True
    if can_fit(layer):
        raise PruningError(
            f"the statistics of {layer.name} hold no products, which the update "
            f"{config.update!r} needs: observe with products_for(layers, config)"
        )
    return False


def update_layer(
    layer: PrunableLayer,
    mask: Tensor | None,
    found: InputStatistics | None,
    config: PruningConfig,
    cross: Tensor | None = None,
    dense_mean: Tensor | None = None,
) -> UpdatedLayer:
    """What the update and the bias of `config` make of one layer; nothing is changed here.

    mask: by the score; None only where SparseGPT chooses. found: the statistics of what the layer
    takes in. cross, dense_mean: E[x x̃ᵀ], (groups, inputs, inputs), and E[x], (groups, inputs), over
    the positions of the products, where that is x̃ and not the x of the dense model, whose outputs
    are to be reproduced; the mean is for the bias.
    Raises PruningError, naming the layer, when something is missing, a weight does not fit
    float16, or a system cannot be solved.
    """
    weight = layer.weight().to("cpu", torch.float32)
    bias = _bias(layer) if config.bias else None
    if bias is not None and (found is None or (cross is not None and dense_mean is None)):
        raise PruningError(
            f"the bias of {layer.name} needs the mean of its inputs, "
            + ("found no statistics" if found is None else "the dense model's too (dense_mean)")
        )
    kept = None
    if is_updated(layer, found, config):
        assert found is not None
        measured = found
        if bias is not None:
            measured = centred(found)
            if cross is not None and dense_mean is not None:
                cross = cross - dense_mean.unsqueeze(2) * found.product_mean.unsqueeze(1)
        mask, fitted = _fitted(layer, weight, mask, measured, config, cross)
        kept = fitted[mask].half()
        if not bool(torch.isfinite(kept).all()):
            raise PruningError(
                f"the updated weights of {layer.name} do not fit float16: raise the ridge "
                f"(now {config.ridge:g})"
            )
    assert mask is not None
    if bias is not None:
        assert found is not None
        # As the layer will really compute: with rounded weights.
        after = torch.zeros_like(weight).masked_scatter(
            mask, weight[mask] if kept is None else kept.float()
        )
        bias = compensated_bias(bias, weight, after, found, dense_mean)
    return UpdatedLayer(mask, kept, bias)


def _bias(layer: PrunableLayer) -> Tensor | None:
    bias = layer.module.bias
    return bias.detach().cpu() if isinstance(bias, Tensor) else None


def _fitted(
    layer: PrunableLayer,
    weight: Tensor,
    mask: Tensor | None,
    found: InputStatistics,
    config: PruningConfig,
    cross: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The mask and the weights under it, float32."""
    group, sparsity, ridge = config.group, config.sparsity_for(layer.name), config.ridge
    if group == "global" and mask is not None:  # what it leaves to this layer
        group, sparsity = "layer", int((~mask).sum()) / mask.numel()
    try:
        if config.update == "least_squares":
            assert mask is not None
            return mask, masked_least_squares(weight, mask, found, ridge, cross)
        if cross is not None:  # under a mask, what is nearest to the best without one is best
            weight = unmasked_least_squares(weight, found, ridge, cross)
        if config.update == "alps":
            assert mask is not None
            return alps(weight, mask, found, sparsity, group, ridge)
        return sparsegpt(weight, found, sparsity, group, ridge)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise PruningError(
            f"the update {config.update!r} of {layer.name} has no solution ({error}): raise the "
            f"ridge (now {ridge:g})"
        ) from error
