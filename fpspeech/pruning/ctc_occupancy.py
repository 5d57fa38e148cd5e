"""How often each symbol stands in each frame when CTC reads a text: forward-backward.

For a text with a blank before, between and behind its symbols, a path goes from frame to frame to
the same state, to the next, or over a blank between two different symbols (Graves, Fernández,
Gomez, Schmidhuber 2006, section 4.1). With α and β the log-likelihood of all beginnings and ends,

    γ(t, k) = Σ_{s: state s is symbol k} exp(α(t, s) + β(t, s) - log p(text))

is the share of the paths that are at symbol k in frame t. The gradient of log p(text) with regard
to the logits is γ - softmax, so no derivative has to be propagated to know it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

NEVER = -torch.inf


def occupancy(
    log_posteriors: Tensor, frames: Tensor, targets: Tensor, lengths: Tensor, blank: int
) -> tuple[Tensor, Tensor]:
    """Log-likelihoods of texts, shape (texts,), and γ, shape (texts, frames, symbols).

    log_posteriors: of the recording of each text, shape (texts, frames, symbols). frames: how many
    of them count, shape (texts,); γ is zero behind them. targets: symbols, shape (texts, longest).
    lengths: how many of those count, shape (texts,). A text that has more symbols than its
    recording has frames for has a likelihood of -inf and a γ of zero.
    """
    texts, longest = log_posteriors.shape[:2]
    states = torch.full((texts, 2 * targets.shape[1] + 1), blank)
    states[:, 1::2] = targets
    # A state is entered from two before it where the blank between them may be left out.
    skipped = pad(states, (2, 0), value=blank)[:, :-2] != states
    skips = torch.where(skipped & (states != blank), 0.0, NEVER)
    place = torch.arange(states.shape[1])
    last = 2 * lengths.unsqueeze(1)
    ends = torch.where((place == last) | (place == last - 1), 0.0, NEVER)
    index = states.unsqueeze(1).expand(-1, longest, -1)
    emitted = log_posteriors.gather(2, index)  # (texts, frames, states)

    begun = torch.where(place <= lengths.clamp_max(1).unsqueeze(1), 0.0, NEVER)
    ahead = [begun + emitted[:, 0]]
    for frame in emitted.unbind(1)[1:]:
        ahead.append(_entered(ahead[-1], skips) + frame)
    behind = [ends.new_full(ends.shape, NEVER)]
    for time in range(longest, 0, -1):
        after = _left(behind[-1] + emitted[:, time], skips) if time < longest else behind[0]
        behind.append(torch.where((frames == time).unsqueeze(1), ends, after))
    alpha, beta = torch.stack(ahead, 1), torch.stack(behind[:0:-1], 1)

    likelihood = (alpha[torch.arange(texts), frames - 1] + ends).logsumexp(1)
    # -inf less -inf: no path at all.
    shares = (alpha + beta - likelihood.view(-1, 1, 1)).exp().nan_to_num(0.0)
    return likelihood, shares.new_zeros(log_posteriors.shape).scatter_add(2, index, shares)


def _entered(before: Tensor, skips: Tensor) -> Tensor:
    """Log-likelihood of being in each state after a step, shape (texts, states)."""
    stayed_or_next = torch.logaddexp(before, pad(before, (1, 0), value=NEVER)[:, :-1])
    return torch.logaddexp(stayed_or_next, pad(before, (2, 0), value=NEVER)[:, :-2] + skips)


def _left(after: Tensor, skips: Tensor) -> Tensor:
    """Log-likelihood of what follows each state, from that of the states one step on."""
    stayed_or_next = torch.logaddexp(after, pad(after, (0, 1), value=NEVER)[:, 1:])
    return torch.logaddexp(stayed_or_next, pad(after + skips, (0, 2), value=NEVER)[:, 2:])
