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

__all__ = [
    "SCORES",
    "Applied",
    "Exclusion",
    "InputStatistics",
    "Observer",
    "PrunableLayer",
    "PruningConfig",
    "PruningError",
    "Selection",
    "apply_masks",
    "evaluation_mode",
    "make_masks",
    "observe",
    "pack",
    "select",
    "select_layers",
    "sparsity_of",
    "unpack",
]
