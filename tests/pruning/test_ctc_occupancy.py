"""Shares of the symbols in each frame: by enumerating every path, and as the gradient of CTC."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import ctc_loss

from fpspeech.pruning.ctc_occupancy import occupancy

BLANK = 1  # not the first symbol, so that nothing relies on it


def slow(log_posteriors, symbols):
    """Log-likelihood and shares, path by path."""
    frames, classes = log_posteriors.shape
    total, shares = 0.0, torch.zeros(frames, classes)
    for path in itertools.product(range(classes), repeat=frames):
        merged = [symbol for symbol, _ in itertools.groupby(path) if symbol != BLANK]
        if merged == symbols:
            likelihood = math.exp(sum(float(log_posteriors[t, s]) for t, s in enumerate(path)))
            total += likelihood
            for time, symbol in enumerate(path):
                shares[time, symbol] += likelihood
    return (math.log(total), shares / total) if total else (-math.inf, shares)


@pytest.mark.parametrize(
    "symbols", [[], [0], [2, 2], [0, 2], [0, 2, 0], [2, 2, 2], [3, 0, 0], [0, 2, 3, 0, 2]]
)
def test_it_is_the_share_of_the_paths(symbols):
    draw = torch.Generator().manual_seed(len(symbols))
    log_posteriors = (2 * torch.randn(5, 4, generator=draw)).log_softmax(-1)
    likelihood, shares = occupancy(
        log_posteriors[None],
        torch.tensor([5]),
        torch.tensor([[*symbols, 0, 3]]),  # padded: what is behind the length means nothing
        torch.tensor([len(symbols)]),
        BLANK,
    )
    total, expected = slow(log_posteriors, symbols)
    assert float(likelihood) == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(shares[0], expected, atol=1e-5, rtol=1e-4)


def test_texts_and_recordings_of_any_length_together_are_those_alone():
    draw = torch.Generator().manual_seed(1)
    log_posteriors = torch.randn(4, 6, 4, generator=draw).log_softmax(-1)
    frames, lengths = torch.tensor([6, 3, 1, 2]), torch.tensor([3, 2, 1, 2])
    targets = torch.tensor([[0, 2, 2], [3, 0, 2], [2, 0, 0], [0, 0, 3]])
    likelihoods, shares = occupancy(log_posteriors, frames, targets, lengths, BLANK)
    for row in range(4):
        heard = log_posteriors[row, : frames[row]]
        total, expected = slow(heard, targets[row, : lengths[row]].tolist())
        assert float(likelihoods[row]) == pytest.approx(total, rel=1e-5)
        torch.testing.assert_close(shares[row, : frames[row]], expected, atol=1e-5, rtol=1e-4)
        assert not shares[row, frames[row] :].any()
    assert float(likelihoods[3]) == -math.inf  # two equal symbols need a blank between them
    assert not shares[3].any()


def test_softmax_less_shares_is_the_gradient_of_the_loss_by_the_logits():
    draw = torch.Generator().manual_seed(2)
    logits = (3 * torch.randn(3, 12, 6, generator=draw)).requires_grad_()
    frames, lengths = torch.tensor([12, 9, 12]), torch.tensor([4, 2, 0])
    targets = torch.tensor([[2, 2, 0, 5], [3, 4, 0, 0], [0, 0, 0, 0]])
    ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        targets,
        frames,
        lengths,
        blank=BLANK,
        reduction="sum",
    ).backward()
    heard = logits.detach().log_softmax(-1)
    _, shares = occupancy(heard, frames, targets, lengths, BLANK)
    inside = (torch.arange(12) < frames[:, None]).unsqueeze(-1)
    torch.testing.assert_close(heard.exp() * inside - shares, logits.grad, atol=1e-5, rtol=1e-4)


def test_long_recordings_do_not_underflow():
    draw = torch.Generator().manual_seed(3)
    log_posteriors = (8 * torch.randn(1, 1500, 5, generator=draw)).log_softmax(-1)
    targets = torch.tensor([[0, 2, 3, 4] * 40])
    likelihood, shares = occupancy(
        log_posteriors, torch.tensor([1500]), targets, torch.tensor([160]), BLANK
    )
    assert likelihood.isfinite().all()
    torch.testing.assert_close(shares.sum(-1), torch.ones(1, 1500), atol=1e-2, rtol=0)
