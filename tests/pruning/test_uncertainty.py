"""How unsure a CTC model is: the published objective by loops, alone and in batches."""

import math

import pytest
import torch

from fpspeech.pruning.uncertainty import class_confusion, entropy, uncertainty

BLANK = 0


def slow_entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities)


def slow_objective(logits, temperature=2.5, share=0.3):
    """The published loss, number by number."""
    frames, classes = logits.shape
    posteriors = []
    for frame in logits.tolist():
        exponentials = [math.exp(value / temperature) for value in frame]
        posteriors.append([e / sum(exponentials) for e in exponentials])
    entropies = [slow_entropy(p) for p in posteriors]
    sounding = [
        h for h, frame in zip(entropies, logits.tolist(), strict=True) if max(frame) != frame[BLANK]
    ]
    weights = [1 + math.exp(-h) for h in entropies]
    weights = [frames * w / sum(weights) for w in weights]
    confusion = [
        [
            sum(w * p[i] * p[j] for w, p in zip(weights, posteriors, strict=True))
            for j in range(classes)
        ]
        for i in range(classes)
    ]
    off = 0.0
    for i in range(classes):
        for j in range(classes):
            if i != j:
                off += confusion[i][j] / sum(confusion[i])
    blank_free = share * sum(sounding) / len(sounding) if sounding else 0.0
    return blank_free + (1 - share) * off / classes


def published_class_confusion(logits):
    """Divides columns by the sums of rows, as the published code does; K is symmetric."""
    p = logits.softmax(-1)
    weights = 1 + torch.exp((logits.softmax(-1) * logits.log_softmax(-1)).sum(-1))
    weights = len(p) * weights / weights.sum()
    confusion = p.mul(weights.view(-1, 1)).T.mm(p)
    confusion = confusion / confusion.sum(1)
    return (confusion.sum() - confusion.trace()) / logits.shape[1]


def test_the_objective_is_the_published_one():
    logits = 3 * torch.randn(20, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert 0 < int((logits.argmax(-1) == BLANK).sum()) < 20
    assert uncertainty(logits, BLANK).item() == pytest.approx(slow_objective(logits), rel=1e-12)
    scaled = logits / 2.5
    torch.testing.assert_close(class_confusion(scaled), published_class_confusion(scaled))


def test_the_weights_of_class_confusion_take_no_gradient():
    logits = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    weights = 1 + torch.exp((logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)).detach()
    p = logits.softmax(-1)
    confusion = (p * (9 * weights / weights.sum()).unsqueeze(1)).T @ p
    confusion = confusion / confusion.sum(1, keepdim=True)
    (expected,) = torch.autograd.grad((confusion.sum() - confusion.trace()) / 5, logits)
    (found,) = torch.autograd.grad(class_confusion(logits), logits)
    torch.testing.assert_close(found, expected)


def test_without_a_frame_that_is_not_blank_the_entropy_is_left_out():
    logits = torch.randn(7, 5, dtype=torch.float64)
    logits[:, BLANK] = 10
    expected = 0.7 * class_confusion(logits / 2.5)
    torch.testing.assert_close(uncertainty(logits, BLANK), expected)
    assert uncertainty(logits, BLANK).item() == pytest.approx(slow_objective(logits))


def test_a_class_that_never_gets_any_posterior_confuses_nothing():
    logits = torch.full((4, 3), -1e4)
    logits[:, 1] = 0.0
    assert class_confusion(logits).item() == 0.0


def test_a_batch_is_its_recordings_one_at_a_time():
    logits = 3 * torch.randn(4, 15, 6, generator=torch.Generator().manual_seed(2)).double()
    logits[2, :, BLANK] = 10  # one without a frame that is not blank
    found = uncertainty(logits, BLANK)
    assert found.shape == (4,)
    for one, recording in zip(found.tolist(), logits, strict=True):
        assert one == pytest.approx(slow_objective(recording), rel=1e-12)


def test_entropy_is_that_of_the_softmax():
    logits = torch.randn(5, 7, dtype=torch.float64)
    for found, row in zip(entropy(logits).tolist(), logits.softmax(-1).tolist(), strict=True):
        assert found == pytest.approx(slow_entropy(row), rel=1e-12)
