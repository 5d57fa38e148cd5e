"""How unsure a CTC model is of what it hears: what SUTA lowers, from logits alone.

share · entropy of non-blank frames + (1 - share) · minimum class confusion, at a temperature (Lin,
Li, Lee, Interspeech 2022). The entropy alone is fooled by a model that becomes sure of anything;
the confusion asks too that what one frame takes for one symbol, others do not take for another.
"""

from __future__ import annotations

import torch
from torch import Tensor

TEMPERATURE = 2.5
ENTROPY_SHARE = 0.3


def uncertainty(
    logits: Tensor,
    blank: int,
    *,
    temperature: float = TEMPERATURE,
    entropy_share: float = ENTROPY_SHARE,
) -> Tensor:
    """The formula at the top of this module, for each recording of a batch.

    logits: shape (..., frames, classes). blank: the class that does not count for the entropy, as
    the best of a frame. Without a non-blank frame the entropy is left out. Returns shape (...).
    """
    scaled = logits / temperature
    sounding = logits.argmax(-1) != blank
    entropies = entropy(scaled).masked_fill(~sounding, 0).sum(-1)
    mean = entropies / sounding.sum(-1).clamp_min(1)
    return entropy_share * mean + (1 - entropy_share) * class_confusion(scaled)


def class_confusion(logits: Tensor) -> Tensor:
    """Minimum class confusion (Jin et al., ECCV 2020) of frames, shape (..., frames, classes).

    K = Pᵀ diag(w) P with P the posteriors and w ∝ 1 + exp(-entropy), adding up to the number of
    frames and constant to a gradient; its rows divided by their sums; the sum off the diagonal
    over the number of classes. Returns shape (...), 0 where no two classes are confused.
    """
    posteriors = logits.softmax(-1)
    weights = 1 + torch.exp(-entropy(logits.detach()))
    weights = weights * (weights.shape[-1] / weights.sum(-1, keepdim=True))
    confusion = (posteriors * weights.unsqueeze(-1)).mT @ posteriors
    # A class whose posterior is zero everywhere has an empty row, not 0/0.
    smallest = torch.finfo(confusion.dtype).tiny
    confusion = confusion / confusion.sum(-1, keepdim=True).clamp_min(smallest)
    own = confusion.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (confusion.sum((-2, -1)) - own) / logits.shape[-1]


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax over the last dimension, in nats."""
    log_posteriors = logits.log_softmax(-1)
    return -(log_posteriors.exp() * log_posteriors).sum(-1)
