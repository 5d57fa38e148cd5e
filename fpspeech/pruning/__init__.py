"""The pruning core: torch only. It knows nothing of speech, images, files or Hugging Face."""

from fpspeech.pruning.layers import (
    Exclusion,
    PrunableLayer,
    PruningError,
    Selection,
    select_layers,
)
from fpspeech.pruning.masks import pack, unpack
from fpspeech.pruning.pruner import (
    Applied,
    PruningConfig,
    apply_masks,
    evaluation_mode,
    make_masks,
    observe,
    select,
    sparsity_of,
)
from fpspeech.pruning.scores import SCORES
from fpspeech.pruning.statistics import InputStatistics, Observer
from fpspeech.pruning.update import BatchNormObserver, Moments, match_batch_norms

__all__ = [
    "SCORES",
    "Applied",
    "BatchNormObserver",
    "Exclusion",
    "InputStatistics",
    "Moments",
    "Observer",
    "PrunableLayer",
    "PruningConfig",
    "PruningError",
    "Selection",
    "apply_masks",
    "evaluation_mode",
    "make_masks",
    "match_batch_norms",
    "observe",
    "pack",
    "select",
    "select_layers",
    "sparsity_of",
    "unpack",
]
