"""The output layer of a CTC model fitted to a speaker's own words, from its inputs alone.

One layer needs no propagation to be trained: with x the input of a frame, the gradient of the
expected loss of `own_words` with regard to the layer's weight is

    Σ_t (softmax(W x_t + b) - γ̄_t) x_tᵀ

where γ̄ are the shares of the symbols in each frame (`ctc_occupancy`) of the texts that the
recording may have, weighted as the loss says (`slopes`). What the model takes for which word is
found anew every `STEPS` steps, as it learns. A step is one of Adam (Kingma, Ba 2015).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fpspeech.pruning.ctc_occupancy import occupancy
from fpspeech.pruning.own_words import (
    Places,
    Spelling,
    all_targets,
    fitted,
    likelihoods,
    owner_of_texts,
    slopes,
)

STEPS = 10
"""Steps between two findings of the words: a round."""

RATE = 0.05
"""Length of a step, as a share of the root mean square of the layer's weights."""

FIRST, SECOND, SMALLEST = 0.9, 0.999, 1e-8
"""β₁, β₂ and ε of Adam."""

LEAST_WEIGHT = 1e-3
"""Of a text in its recording: c(w) of less is left out."""

MOST_NUMBERS = 6_000_000
"""Of texts times frames times states that are in memory at a time."""


@dataclass(frozen=True)
class Head:
    """An output layer. weight: shape (symbols, features). bias: shape (symbols,)."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of_point(cls, point: Tensor) -> Head:
        """Undoes `point`."""
        return cls(point[:, :-1].contiguous(), point[:, -1].contiguous())

    @property
    def point(self) -> Tensor:
        """Weight and bias as one, shape (symbols, features + 1)."""
        return torch.cat([self.weight, self.bias.unsqueeze(1)], 1)

    def log_posteriors(self, features: Tensor) -> Tensor:
        """Of inputs of shape (..., features), shape (..., symbols)."""
        return (features @ self.weight.T + self.bias).log_softmax(-1)


def fitted_heads(
    recordings: Sequence[Tensor], head: Head, spelling: Spelling, rounds: int
) -> Iterator[Head]:
    """The head after each round of fitting it to these recordings.

    recordings: the layer's inputs, each of shape (frames, features). A recording's loss counts as a
    share of what it and the mean recording had at the beginning of the round, so that no few rule.
    """
    rate = RATE * float(head.weight.square().mean().sqrt())
    point = head.point
    mean, square = torch.zeros_like(point), torch.zeros_like(point)
    for done in range(rounds):
        said, losses = fitted([head.log_posteriors(each) for each in recordings], spelling)
        usual = fmean(losses)
        scales = [1 / ((loss + usual) or 1.0) / len(recordings) for loss in losses]
        batches = _batches(recordings, said)
        for step in range(done * STEPS + 1, (done + 1) * STEPS + 1):
            slope = torch.zeros_like(point)
            for batch in batches:
                slope += gradient(
                    [recordings[number] for number in batch],
                    head,
                    [said[number] for number in batch],
                    [scales[number] for number in batch],
                    spelling,
                )
            mean = FIRST * mean + (1 - FIRST) * slope
            square = SECOND * square + (1 - SECOND) * slope.square()
            spread = (square / (1 - SECOND**step)).sqrt() + SMALLEST
            point = point - rate * mean / (1 - FIRST**step) / spread
            head = Head.of_point(point)
        yield head


def gradient(
    recordings: Sequence[Tensor],
    head: Head,
    said: Sequence[Places],
    scales: Sequence[float],
    spelling: Spelling,
) -> Tensor:
    """That of Σ scale · `expected_loss` with regard to weight and bias, (symbols, features + 1).

    recordings: the layer's inputs, each of shape (frames, features). said: what each may say.
    """
    inputs = pad_sequence(list(recordings), batch_first=True)  # (recordings, frames, features)
    log_posteriors = head.log_posteriors(inputs)
    frames = torch.tensor([len(each) for each in recordings])
    weights = -slopes(likelihoods(log_posteriors, said, spelling, frames), said)
    # Most texts are next to impossible, and forward-backward is what takes the time.
    matters = weights.abs() > LEAST_WEIGHT
    owner = owner_of_texts(said)[matters]
    _, shares = occupancy(
        log_posteriors[owner],
        frames[owner],
        all_targets(said)[matters],
        torch.cat([each.lengths for each in said])[matters],
        spelling.blank,
    )
    weights = weights[matters] * torch.tensor(scales)[owner]
    wanted = torch.zeros_like(log_posteriors)
    wanted.index_add_(0, owner, shares * weights.view(-1, 1, 1))
    # A text that does not fit into its recording has no shares, and no say.
    too_much = log_posteriors.exp() * wanted.sum(-1, keepdim=True) - wanted
    weight = torch.einsum("rfs,rfi->si", too_much, inputs)
    return torch.cat([weight, too_much.sum((0, 1)).unsqueeze(1)], 1)


def _batches(recordings: Sequence[Tensor], said: Sequence[Places]) -> list[list[int]]:
    """Recordings of about the same length together, as many as fit into memory."""
    batches: list[list[int]] = [[]]
    for number in sorted(range(len(recordings)), key=lambda each: len(recordings[each])):
        tried = [*batches[-1], number]
        texts = sum(len(said[each].words) for each in tried)
        states = 2 * max(said[each].targets.shape[1] for each in tried) + 1
        if batches[-1] and texts * states * len(recordings[number]) > MOST_NUMBERS:
            batches.append([number])
        else:
            batches[-1] = tried
    return batches
