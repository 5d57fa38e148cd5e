"""The pruning core: torch only. It knows nothing of speech, images, files or Hugging Face."""

from fpspeech.pruning.applied import Applied, apply_masks
from fpspeech.pruning.config import PruningConfig
from fpspeech.pruning.layers import (
    Exclusion,
    PrunableLayer,
    PruningError,
    Selection,
    select_layers,
)
from fpspeech.pruning.masks import pack, unpack
from fpspeech.pruning.normalization import (
    FeatureMap,
    FeatureMoments,
    FeatureObserver,
    Site,
    folded,
    matching_map,
)
from fpspeech.pruning.output_prior import Prior, estimate_prior, log_prior_shift, with_prior
from fpspeech.pruning.pruner import (
    Pruned,
    PrunedLayers,
    evaluation_mode,
    make_masks,
    observe,
    products_for,
    prune,
    prune_layers,
    select,
    sparsity_of,
)
from fpspeech.pruning.replay import Replay, Stage, execution_stages
from fpspeech.pruning.scores import SCORES
from fpspeech.pruning.sequential import SequentialPruner, prune_sequentially
from fpspeech.pruning.shrinkage import shrinkage_weight, shrunk
from fpspeech.pruning.statistics import InputStatistics, Observer, from_tensors, to_tensors
from fpspeech.pruning.update import Moments, batch_norms, match_batch_norms, measure_moments

__all__ = [
    "SCORES",
    "Applied",
    "Exclusion",
    "FeatureMap",
    "FeatureMoments",
    "FeatureObserver",
    "InputStatistics",
    "Moments",
    "Observer",
    "Prior",
    "PrunableLayer",
    "Pruned",
    "PrunedLayers",
    "PruningConfig",
    "PruningError",
    "Replay",
    "Selection",
    "SequentialPruner",
    "Site",
    "Stage",
    "apply_masks",
    "batch_norms",
    "estimate_prior",
    "evaluation_mode",
    "execution_stages",
    "folded",
    "from_tensors",
    "log_prior_shift",
    "make_masks",
    "match_batch_norms",
    "matching_map",
    "measure_moments",
    "observe",
    "pack",
    "products_for",
    "prune",
    "prune_layers",
    "prune_sequentially",
    "select",
    "select_layers",
    "shrinkage_weight",
    "shrunk",
    "sparsity_of",
    "to_tensors",
    "unpack",
    "with_prior",
]
