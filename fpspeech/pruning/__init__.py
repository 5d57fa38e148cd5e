"""The pruning core: torch only. It knows nothing of speech, images, files or Hugging Face."""

from fpspeech.pruning.applied import Applied, apply_masks
from fpspeech.pruning.layers import (
    Exclusion,
    PrunableLayer,
    PruningError,
    Selection,
    select_layers,
)
from fpspeech.pruning.masks import pack, unpack
from fpspeech.pruning.pruner import (
    Pruned,
    PruningConfig,
    evaluation_mode,
    make_masks,
    observe,
    products_for,
    prune,
    select,
    sparsity_of,
    update_weights,
)
from fpspeech.pruning.scores import SCORES
from fpspeech.pruning.statistics import InputStatistics, Observer
from fpspeech.pruning.update import Moments, batch_norms, match_batch_norms, measure_moments

__all__ = [
    "SCORES",
    "Applied",
    "Exclusion",
    "InputStatistics",
    "Moments",
    "Observer",
    "PrunableLayer",
    "Pruned",
    "PruningConfig",
    "PruningError",
    "Selection",
    "apply_masks",
    "batch_norms",
    "evaluation_mode",
    "make_masks",
    "match_batch_norms",
    "measure_moments",
    "observe",
    "pack",
    "products_for",
    "prune",
    "select",
    "select_layers",
    "sparsity_of",
    "unpack",
    "update_weights",
]
