"""The output layer of a CTC model refitted behind pruned layers, to what the dense model says.

Some of what pruning loses the last layer can make good, as it was made for other inputs; see
`fpspeech.pruning.head_refit`. The answers of the dense model (as normalised and tuned, nothing
pruned) are asked for once, and serve every sparsity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fpspeech.listening import MOST_SECONDS, Listener, first_seconds
from fpspeech.models import SpeechModel
from fpspeech.output_layer import head_inputs, head_of, head_values
from fpspeech.pruning.head_refit import refit


@dataclass(frozen=True)
class RefitHead:
    """What refitting came to.

    values: the layer's weight and bias, by their names in the state dict. divergence: from the
    dense model on the same audio, before and after, in nats a frame.
    """

    values: dict[str, Tensor]
    divergence: tuple[float, float]

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {"divergence": [round(each, 6) for each in self.divergence]}


class DenseAnswers:
    """What a model says of the first minutes of some windows, to refit the pruned model to.

    Asked when it is made, of the model as it is in force then. log_posteriors: of each window,
    shape (frames, symbols). Raises Interrupted after `listener.stop()`, PruningError for a model
    that is no CTC model.
    """

    def __init__(
        self, model: SpeechModel, windows: Iterable[Tensor], listener: Listener | None = None
    ) -> None:
        self.model, self.listener = model, listener
        self.windows = first_seconds(windows, MOST_SECONDS, model.sampling_rate)
        head = head_of(model)
        inputs = head_inputs(model, self.windows, listener)
        self.log_posteriors = [head.log_posteriors(each) for each in inputs]

    def refit_head(self) -> RefitHead:
        """The output layer for the model as it is in force now: pruned. Nothing is changed."""
        inputs = head_inputs(self.model, self.windows, self.listener)
        spelling = self.model.spelling
        blank = None if spelling is None else spelling.blank
        found = refit(inputs, self.log_posteriors, head_of(self.model), blank)
        return RefitHead(head_values(self.model, found.head), found.divergence)
