"""Refitting the output layer: the divergence by loops, a step by autograd and an inverse."""

import math

import pytest
import torch

from fpspeech.pruning import head_refit as module
from fpspeech.pruning.head_fit import Head
from fpspeech.pruning.head_refit import refit

SYMBOLS, FEATURES, BLANK = 4, 6, 0


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def dense():
    return Head(random(SYMBOLS, FEATURES), random(SYMBOLS, seed=1))


@pytest.fixture
def recordings():
    """What the layer reads where nothing is pruned."""
    return [random(frames, FEATURES, seed=frames) for frames in (40, 23, 31)]


@pytest.fixture
def inputs(recordings):
    """And what pruned layers hand over."""
    return [each + 0.5 * random(*each.shape, seed=7) for each in recordings]


@pytest.fixture
def wanted(recordings, dense):
    return [dense.log_posteriors(each) for each in recordings]


def divergence(inputs, wanted, head, blank):
    """The formula, frame by frame."""
    frames = [pair for x, p in zip(inputs, wanted, strict=True) for pair in zip(x, p, strict=True)]
    writes = [blank is not None and int(p.argmax()) != blank for _, p in frames]
    total = 0.0
    for (x, log_p), written in zip(frames, writes, strict=True):
        logits = [
            float(head.bias[k])
            + sum(float(w) * float(v) for w, v in zip(head.weight[k], x, strict=True))
            for k in range(SYMBOLS)
        ]
        norm = math.log(sum(math.exp(each) for each in logits))
        kl = sum(
            math.exp(float(log_p[k])) * (float(log_p[k]) - logits[k] + norm) for k in range(SYMBOLS)
        )
        share = 1 / len(frames)
        if any(writes) and not all(writes):
            share = 0.5 / (sum(writes) if written else len(writes) - sum(writes))
        total += share * kl
    return total


@pytest.mark.parametrize("blank", [None, BLANK])
def test_the_divergence_is_that_of_the_formula(inputs, wanted, dense, blank):
    found = refit(inputs, wanted, dense, blank)
    before, after = found.divergence
    assert before == pytest.approx(divergence(inputs, wanted, dense, blank), rel=1e-4)
    assert after == pytest.approx(divergence(inputs, wanted, found.head, blank), rel=1e-4)
    assert 0 < after < 0.8 * before


def objective(x, p, c, weight):
    return (c * (p * (p.log() - (x @ weight.T).log_softmax(-1))).sum(-1)).sum()


def problem(inputs, wanted):
    x = torch.cat([*inputs]).double()
    x = torch.cat([x, torch.ones(len(x), 1).double()], 1)
    p = torch.cat([*wanted]).double().exp()
    return x, p, torch.full((len(x),), 1 / len(x)).double()


def point(head):
    return torch.cat([head.weight, head.bias.unsqueeze(1)], 1).double()


def test_a_step_is_that_of_the_formula(inputs, wanted, dense, monkeypatch):
    monkeypatch.setattr(module, "STEPS", 1)
    x, p, c = problem(inputs, wanted)
    weight = point(dense).requires_grad_()
    objective(x, p, c, weight).backward()
    second = sum(share * torch.outer(each, each) for share, each in zip(c, x, strict=True))
    ridge = 0.1 * second.diagonal().mean() * torch.eye(FEATURES + 1)
    expected = weight - 2 * weight.grad @ torch.linalg.inv(second + ridge)
    found = point(refit(inputs, wanted, dense).head)
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-4)


def test_the_second_derivative_is_nowhere_more_than_the_bound(inputs, wanted):
    x, p, c = problem(inputs, wanted)
    second = sum(share * torch.outer(each, each) for share, each in zip(c, x, strict=True))
    centring = torch.eye(SYMBOLS) - torch.ones(SYMBOLS, SYMBOLS) / SYMBOLS
    bound = torch.kron(0.5 * centring.double(), second)
    for seed in range(5):
        weight = random(SYMBOLS, FEATURES + 1, seed=seed).double()

        def of(flat):
            return objective(x, p, c, flat.reshape(SYMBOLS, -1))

        hessian = torch.autograd.functional.hessian(of, weight.flatten())
        assert torch.linalg.eigvalsh(bound - hessian).min() > -1e-9


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_every_step_comes_nearer(inputs, wanted, dense, ridge, monkeypatch):
    monkeypatch.setattr(module, "RIDGE", ridge)
    after = []
    for steps in range(12):
        monkeypatch.setattr(module, "STEPS", steps)
        after.append(refit(inputs, wanted, dense, BLANK).divergence[1])
    assert after == sorted(after, reverse=True)
    assert len(set(after)) == len(after)


def test_what_can_be_made_good_is_made_good(recordings, wanted, dense, monkeypatch):
    monkeypatch.setattr(module, "RIDGE", 0.0)
    monkeypatch.setattr(module, "STEPS", 3000)
    mixing = torch.eye(FEATURES) + 0.2 * random(FEATURES, FEATURES, seed=5)
    found = refit([each @ mixing + 1 for each in recordings], wanted, dense)
    assert found.divergence[1] < 1e-4 < found.divergence[0]


def test_where_nothing_is_lost_nothing_changes(recordings, wanted, dense):
    found = refit(recordings, wanted, dense, BLANK)
    assert found.divergence == pytest.approx((0, 0), abs=1e-6)
    torch.testing.assert_close(found.head.weight, dense.weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.head.bias, dense.bias, atol=1e-5, rtol=1e-5)


def test_a_symbol_that_is_impossible_is_no_trouble(inputs, wanted, dense):
    wanted[0][:, 2] = -torch.inf
    found = refit(inputs, wanted, dense)
    assert all(map(math.isfinite, found.divergence))
    assert torch.isfinite(found.head.weight).all()


def test_frames_all_of_a_kind_count_alike(inputs, dense):
    silent = torch.tensor([0.7, 0.1, 0.1, 0.1]).log()
    wanted = [silent.expand(len(each), -1) for each in inputs]
    one, other = refit(inputs, wanted, dense, BLANK), refit(inputs, wanted, dense, None)
    assert torch.equal(one.head.weight, other.head.weight)
    assert one.divergence == other.divergence


def test_an_input_that_is_always_nothing_keeps_its_weights(inputs, wanted, dense):
    for each in inputs:
        each[:, 3] = 0
    found = refit(inputs, wanted, dense)
    torch.testing.assert_close(found.head.weight[:, 3], dense.weight[:, 3])
