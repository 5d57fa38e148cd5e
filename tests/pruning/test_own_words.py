"""The speaker's own words: CTC by enumerating every path, the formulas written slowly."""

import itertools
import math

import pytest
import torch

from fpspeech.pruning import own_words as module
from fpspeech.pruning.own_words import (
    IMPOSSIBLE,
    TEMPER,
    Places,
    Spelling,
    as_shares,
    as_written,
    expected_loss,
    fitted,
    likelihoods,
    own_words,
    posterior,
    slopes,
    written,
)

BLANK, END = 0, 1
SPELLING = Spelling(BLANK, END)
A, B, C = 2, 3, 4


def random_posteriors(frames, classes=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(frames, classes, generator=draw)).log_softmax(-1)


def places_of(texts):
    """Places from (place, symbols, log-prior)."""
    longest = max(len(symbols) for _, symbols, _ in texts)
    return Places(
        targets=torch.tensor([symbols + [0] * (longest - len(symbols)) for _, symbols, _ in texts]),
        lengths=torch.tensor([len(symbols) for _, symbols, _ in texts]),
        places=torch.tensor([place for place, _, _ in texts]),
        log_prior=torch.tensor([prior for _, _, prior in texts]),
        words=tuple(tuple(symbols) for _, symbols, _ in texts),
    )


def slow_likelihood(log_posteriors, symbols):
    """The sum over all paths that are merged to these symbols."""
    frames, classes = log_posteriors.shape
    total = 0.0
    for path in itertools.product(range(classes), repeat=frames):
        merged = [symbol for symbol, _ in itertools.groupby(path) if symbol != BLANK]
        if merged == symbols:
            total += math.exp(sum(float(log_posteriors[t, s]) for t, s in enumerate(path)))
    return math.log(total)


def slow_loss(log_posteriors, texts):
    places = sorted({place for place, _, _ in texts})
    losses = []
    for wanted in places:
        here = [(symbols, prior) for place, symbols, prior in texts if place == wanted]
        found = [slow_likelihood(log_posteriors, symbols) for symbols, _ in here]
        weights = [
            math.exp(prior) * math.exp(each) ** TEMPER
            for each, (_, prior) in zip(found, here, strict=True)
        ]
        shares = [weight / sum(weights) for weight in weights]
        losses.append(-sum(q * each for q, each in zip(shares, found, strict=True)))
    return sum(losses) / len(losses)


TEXTS = [
    (0, [A, END, B], math.log(0.5)),
    (0, [B, END, B], math.log(0.2)),
    (1, [A, END, B], math.log(0.2)),
    (1, [A, END, A], math.log(0.4)),
    (1, [A, END, C, A], math.log(0.1)),
]


def test_likelihoods_are_sums_over_all_paths():
    log_posteriors = random_posteriors(5)
    found = likelihoods(log_posteriors[None], [places_of(TEXTS)], SPELLING)
    slow = [slow_likelihood(log_posteriors, symbols) for _, symbols, _ in TEXTS]
    torch.testing.assert_close(found, torch.tensor(slow), atol=1e-4, rtol=1e-4)


def test_expected_loss_is_the_formula_written_slowly():
    recordings = torch.stack([random_posteriors(5, seed=1), random_posteriors(5, seed=2)])
    one = [(0, [C], math.log(0.3)), (0, [A, B], math.log(0.6))]
    found = expected_loss(recordings, [places_of(TEXTS), places_of(one)], SPELLING)
    slow = [slow_loss(recordings[0], TEXTS), slow_loss(recordings[1], one)]
    torch.testing.assert_close(found, torch.tensor(slow), atol=1e-4, rtol=1e-4)


def test_recordings_together_have_the_losses_that_they_have_alone():
    recordings = torch.stack([random_posteriors(6, seed=seed) for seed in range(3)])
    said = [places_of(TEXTS), places_of(TEXTS[:2]), places_of(TEXTS[2:4] + TEXTS[:1])]
    alone = [
        expected_loss(each[None], [places], SPELLING)[0]
        for each, places in zip(recordings, said, strict=True)
    ]
    torch.testing.assert_close(expected_loss(recordings, said, SPELLING), torch.stack(alone))


def test_lowering_it_raises_the_likelihood_and_the_information():
    """τ · loss = -log Σ π p^τ - KL(q || π), as the first lines of the module say."""
    log_posteriors = random_posteriors(5, seed=3)
    one = places_of(TEXTS[:2])
    found = likelihoods(log_posteriors[None], [one], SPELLING)
    q, prior = posterior(found, [one]), one.log_prior
    marginal = torch.log((prior.exp() * (TEMPER * found).exp()).sum())
    information = (q * (q.log() - prior)).sum()
    loss = expected_loss(log_posteriors[None], [one], SPELLING)[0]
    torch.testing.assert_close(TEMPER * loss, -marginal - information)


def test_as_written_counts_the_words_that_stay_what_they_are():
    """Ten times B; C once, which is next to B both in spelling and in sound."""

    def heard(*symbols, doubt=30.0):
        path = [frame for symbol in symbols for frame in (symbol, BLANK)]
        found = torch.full((len(path), 5), -doubt)
        return found.scatter(1, torch.tensor(path)[:, None], 0.0).log_softmax(-1)

    recordings = [heard(B, END, A)] * 9 + [heard(B, END, C, doubt=3.0), heard(C, doubt=3.0)]
    said = own_words(recordings, SPELLING)
    texts = [written(each, SPELLING) for each in recordings]
    assert texts[-2:] == [((B,), (C,)), ((C,),)]
    changed = 0
    for recording, places, text in zip(recordings, said, texts, strict=True):
        likely = posterior(likelihoods(recording[None], [places], SPELLING), [places])
        for place, word in enumerate(text):
            best = max(
                (float(share), other)
                for share, other, there in zip(
                    likely, places.words, places.places.tolist(), strict=True
                )
                if there == place
            )
            changed += best[1] != word
    assert 0 < changed < 4
    assert as_written(recordings, said, SPELLING) == pytest.approx(1 - changed / 21)


def test_the_slopes_are_the_derivative_of_the_loss():
    said = [places_of(TEXTS), places_of([(0, [C], math.log(0.3)), (0, [A, B], math.log(0.6))])]
    log_posteriors = torch.stack([random_posteriors(5, seed=1), random_posteriors(5, seed=2)])
    found = likelihoods(log_posteriors, said, SPELLING).double()

    def loss(values):
        total, start = 0.0, 0
        for each in said:
            here = values[start : start + len(each.words)]
            start += len(each.words)
            for place in range(each.count):
                at = each.places == place
                q = (TEMPER * here[at] + each.log_prior[at].double()).softmax(0)
                total = total - (q * here[at]).sum() / each.count
        return total

    for text in range(len(found)):
        step = torch.zeros_like(found)
        step[text] = 1e-4
        difference = float(loss(found + step) - loss(found - step)) / 2e-4
        assert float(slopes(found.float(), said)[text]) == pytest.approx(difference, abs=1e-3)


def test_a_text_longer_than_the_recording_is_impossible():
    texts = [(0, [A], 0.0), (0, [A, B, A, B, A], 0.0)]
    log_posteriors = random_posteriors(3)
    found = likelihoods(log_posteriors[None], [places_of(texts)], SPELLING)
    assert found[1] == IMPOSSIBLE
    loss = expected_loss(log_posteriors[None], [places_of(texts)], SPELLING)
    torch.testing.assert_close(loss, -found[:1])


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ([A, A, BLANK, A, B, END, END, C], ((A, A, B), (C,))),
        ([END, A, END], ((A,),)),
        ([BLANK, BLANK], ((),)),
        ([END], ((),)),
    ],
)
def test_what_is_written_is_merged_and_cut_into_words(path, text):
    log_posteriors = torch.full((len(path), 5), -9.0)
    log_posteriors[torch.arange(len(path)), torch.tensor(path)] = 0
    assert written(log_posteriors, SPELLING) == text


def test_without_a_delimiter_all_of_it_is_one_word():
    log_posteriors = torch.eye(5)[[A, END, B]].log_softmax(-1)
    assert written(log_posteriors, Spelling(BLANK, None)) == ((A, END, B),)


def saying(symbols, *, sure=4.0, also=()):
    """A recording with a frame for each symbol; `also` are (frame, symbol, how sure)."""
    log_posteriors = torch.zeros(len(symbols), 6)
    for frame, symbol in enumerate(symbols):
        log_posteriors[frame, symbol] = sure
    for frame, symbol, much in also:
        log_posteriors[frame, symbol] = much
    return log_posteriors.log_softmax(-1)


def shares_in(recording, places):
    q = posterior(likelihoods(recording[None], [places], SPELLING), [places])
    return dict(zip(places.words, q.tolist(), strict=True))


def test_what_is_written_once_gives_way_to_what_is_written_often():
    often = [saying([A, BLANK, B]) for _ in range(10)]
    misheard = saying([A, BLANK, C], also=[(2, B, 3.0)])
    others = [saying([C, BLANK, A]) for _ in range(5)]
    recordings = [*often, misheard, *others]
    assert written(misheard, SPELLING) == ((A, C),)
    said = own_words(recordings, SPELLING)
    assert len(said) == len(recordings)
    found = shares_in(misheard, said[10])
    assert max(found, key=found.get) == (A, B)
    assert (A, C) not in found  # nobody says it any more
    assert max(shares_in(others[0], said[-1]).items(), key=lambda each: each[1])[0] == (C, A)


def test_words_that_are_heard_clearly_stay_however_rare():
    often = [saying([A, BLANK, B]) for _ in range(10)]
    clear = saying([A, BLANK, C], sure=20.0)
    found = shares_in(clear, own_words([*often, clear], SPELLING)[10])
    assert found[A, C] > 0.9


def test_every_word_of_a_sentence_has_a_place():
    sentence = saying([A, B, END, C, END, A])
    (places,) = own_words([sentence], SPELLING)
    assert sorted(set(places.places.tolist())) == [0, 1, 2]
    for place in range(3):
        shares = posterior(likelihoods(sentence[None], [places], SPELLING), [places])
        assert float(shares[places.places == place].sum()) == pytest.approx(1)


def test_silence_stands_for_a_recording_and_never_for_a_word_of_a_sentence():
    silent = saying([BLANK, BLANK, BLANK])
    sentence = saying([A, END, B])
    said = own_words([silent, silent, sentence], SPELLING)
    assert () in said[0].words
    assert () not in said[2].words


def test_priors_are_shares_of_the_words_that_were_heard():
    recordings = [saying([A, BLANK, B], sure=30.0)] * 3 + [saying([C, BLANK, A], sure=30.0)]
    said = own_words(recordings, SPELLING)
    prior = {
        word: log
        for each in said
        for word, log in zip(each.words, each.log_prior.tolist(), strict=True)
    }
    assert math.exp(prior[A, B]) == pytest.approx((3 + 0.1) / 4.2, abs=1e-3)
    assert math.exp(prior[C, A]) == pytest.approx((1 + 0.1) / 4.2, abs=1e-3)


def test_unlikely_words_are_not_followed_up():
    recordings = [saying([A, BLANK, B], sure=60.0)] * 3 + [saying([C, BLANK, A], sure=60.0)]
    assert own_words(recordings, SPELLING)[0].words == ((A, B),)


def test_fitted_gives_the_loss_of_each_recording_in_the_words_of_all():
    recordings = [saying([A, BLANK, B]), saying([A, BLANK, B, BLANK]), saying([C, BLANK, A])]
    said, losses = fitted(recordings, SPELLING)
    for recording, places, loss in zip(recordings, said, losses, strict=True):
        assert loss == pytest.approx(float(expected_loss(recording[None], [places], SPELLING)))
    assert {word for places in said for word in places.words} == {(A, B), (C, A)}


def slow_distance(word, other):
    if not word or not other:
        return len(word) + len(other)
    return min(
        slow_distance(word[1:], other) + 1,
        slow_distance(word, other[1:]) + 1,
        slow_distance(word[1:], other[1:]) + (word[0] != other[0]),
    )


def test_distance_is_the_definition():
    words = [(), (A,), (A, B), (B, A, C), (A, B, C, A), (C, C, A)]
    for word, other in itertools.product(words, repeat=2):
        assert module._distance(word, other) == slow_distance(word, other)


def test_losses_are_shares_of_their_mean_and_the_usual_loss():
    after, before = as_shares([1.0, 4.0], [2.0, 6.0])
    assert after == pytest.approx([1 / (1.5 + 4), 4 / (5 + 4)])
    assert before == pytest.approx([2 / (1.5 + 4), 6 / (5 + 4)])
    assert as_shares([0.0], [0.0]) == ([0.0], [0.0])
