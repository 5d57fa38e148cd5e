"""Fitting the output layer: the gradient by autograd, the steps by torch's Adam, and the effect."""

from statistics import fmean

import pytest
import torch
from torch.nn.functional import one_hot

from fpspeech.pruning import head_fit as module
from fpspeech.pruning.head_fit import Head, fitted_heads, gradient
from fpspeech.pruning.own_words import Spelling, expected_loss, fitted, written

SPELLING = Spelling(0, 1)
SYMBOLS, FEATURES = 6, 8
YES, NO, MAYBE = (2, 3), (4, 5), (5, 2, 3)


def spoken(word, draw, noise=0.5):
    """Features of a word: two frames a symbol and a blank, a code for each, and noise."""
    path = [0, *(frame for symbol in word for frame in (symbol, symbol, 0))]
    clean = one_hot(torch.tensor(path), FEATURES).float()
    return clean + noise * torch.randn(clean.shape, generator=draw)


@pytest.fixture
def recordings():
    draw = torch.Generator().manual_seed(0)
    return [spoken(word, draw) for word in (YES, NO, YES, MAYBE, NO, YES) * 5]


@pytest.fixture
def head():
    """It reads the codes right, but for a bias that takes 3 for 4 now and then."""
    weight = 4 * torch.eye(SYMBOLS, FEATURES)
    bias = torch.tensor([0.0, -3.0, 0.0, 0.0, 1.5, 0.0])
    return Head(weight, bias)


def right(head, recordings):
    words = (YES, NO, YES, MAYBE, NO, YES) * 5
    texts = [written(head.log_posteriors(each), SPELLING) for each in recordings]
    return fmean(text == (word,) for text, word in zip(texts, words, strict=True))


def test_the_gradient_is_that_of_the_expected_loss(recordings, head, monkeypatch):
    monkeypatch.setattr(module, "LEAST_WEIGHT", 0.0)
    recordings = [recordings[0], recordings[3], recordings[1]]
    said, _ = fitted([head.log_posteriors(each) for each in recordings], SPELLING)
    assert max(len(each.words) for each in said) > 1
    scales = [0.3, 1.0, 0.7]
    weight, bias = (each.clone().requires_grad_() for each in (head.weight, head.bias))
    loss = sum(
        scale * expected_loss(Head(weight, bias).log_posteriors(each)[None], [places], SPELLING)[0]
        for scale, each, places in zip(scales, recordings, said, strict=True)
    )
    loss.backward()
    found = gradient(recordings, head, said, scales, SPELLING)
    torch.testing.assert_close(found[:, :-1], weight.grad, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found[:, -1], bias.grad, atol=1e-4, rtol=1e-3)


def test_texts_that_hardly_matter_are_left_out(recordings, head, monkeypatch):
    said, _ = fitted([head.log_posteriors(each) for each in recordings], SPELLING)
    read = []
    forward_backward = module.occupancy

    def watched(log_posteriors, *given):
        read.append(len(log_posteriors))
        return forward_backward(log_posteriors, *given)

    monkeypatch.setattr(module, "occupancy", watched)
    given = (recordings, head, said, [1.0] * len(said), SPELLING)
    fast = gradient(*given)
    monkeypatch.setattr(module, "LEAST_WEIGHT", 0.0)
    whole = gradient(*given)
    assert read[0] < read[1]
    assert (fast - whole).norm() < 0.02 * whole.norm()


def test_a_text_longer_than_its_recording_has_no_say(recordings, head):
    said, _ = fitted([head.log_posteriors(each) for each in recordings], SPELLING)
    short = recordings[3][:2]  # of three symbols
    found = gradient([short], head, [said[3]], [1.0], SPELLING)
    assert found.isfinite().all()


def test_steps_are_those_of_adam(recordings, head, monkeypatch):
    monkeypatch.setattr(module, "LEAST_WEIGHT", 0.0)
    monkeypatch.setattr(module, "STEPS", 3)
    heads = list(fitted_heads(recordings, head, SPELLING, 2))
    point = torch.cat([head.weight, head.bias[:, None]], 1).requires_grad_()
    rate = module.RATE * float(head.weight.square().mean().sqrt())
    adam = torch.optim.Adam([point], lr=rate)
    for now in heads:
        with torch.no_grad():
            plain = Head(point[:, :-1], point[:, -1])
            said, losses = fitted([plain.log_posteriors(each) for each in recordings], SPELLING)
        for _ in range(3):
            adam.zero_grad()
            loss = 0
            for each, places, before in zip(recordings, said, losses, strict=True):
                heard = Head(point[:, :-1], point[:, -1]).log_posteriors(each)
                scale = (before + fmean(losses)) * len(recordings)
                loss = loss + expected_loss(heard[None], [places], SPELLING)[0] / scale
            loss.backward()
            adam.step()
        torch.testing.assert_close(now.weight, point[:, :-1].detach(), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(now.bias, point[:, -1].detach(), atol=1e-4, rtol=1e-3)


def test_words_that_recur_are_heard_better_even_where_they_were_not_fitted(recordings, head):
    *_, fit = fitted_heads(recordings[::2], head, SPELLING, 3)
    assert right(head, recordings) < 0.75
    assert right(fit, recordings) > right(head, recordings) + 0.1


def test_few_numbers_at_a_time_come_to_the_same(recordings, head, monkeypatch):
    (together,) = fitted_heads(recordings, head, SPELLING, 1)
    monkeypatch.setattr(module, "MOST_NUMBERS", 1)  # every recording alone
    (alone,) = fitted_heads(recordings, head, SPELLING, 1)
    torch.testing.assert_close(together.weight, alone.weight, atol=1e-3, rtol=1e-3)


def test_what_is_given_is_left_as_it_was(recordings, head):
    before = head.weight.clone(), head.bias.clone(), [each.clone() for each in recordings]
    list(fitted_heads(recordings, head, SPELLING, 1))
    assert torch.equal(head.weight, before[0])
    assert torch.equal(head.bias, before[1])
    assert all(map(torch.equal, recordings, before[2]))
