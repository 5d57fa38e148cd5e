"""The words a speaker uses, found in what a CTC model writes for them, and how well it fits them.

Who is misheard is misheard in many ways, but says the same words again: what is written often is
more likely right than what is written once. For a place in a recording where a word stands, with
π(w) the share of the speaker's words that are w and τ < 1, because CTC is surer than it is right,

    q(w) ∝ π(w) · p(text with w there | recording)^τ
    expected loss = -Σ_w q(w) · log p(text with w there | recording)

π is found by expectation maximization over all places (Dempster, Laird, Rubin 1977; of classes:
Saerens, Latinne, Decaestecker 2002), w being whatever the model itself has written. What lowering
the loss does is said by τ · loss = -log Σ_w π(w) p(w)^τ - KL(q || π): it raises the likelihood of
the speaker's words and the information that a recording gives about which of them it is (Krause,
Perona, Gomes 2010). Calling every word the same loses of the second what it gains of the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import ctc_loss
from torch.nn.utils.rnn import pad_sequence

Word = tuple[int, ...]
Text = tuple[Word, ...]

TEMPER = 0.3
"""τ of the formula."""

NEAR = 16
"""Words that may stand in a place: those spelt most like the one that is there."""

ROUNDS = 8
"""Of expectation maximization, at most."""

SMOOTHING = 0.1
"""Times that every word is counted before any is heard."""

UNLIKELY = 1e-4
"""Words less likely in a place are not followed up there."""

IMPOSSIBLE = -1e6
"""Log-likelihood of a text with more symbols than the recording has frames."""


@dataclass(frozen=True)
class Spelling:
    """The symbols of a CTC model that are no letters.

    blank: writes nothing. delimiter: between two words, None where there is none.
    """

    blank: int
    delimiter: int | None


@dataclass(frozen=True)
class Places:
    """The texts that a recording may have: for each place of a word, one text for each word there.

    targets: symbols, shape (texts, longest). lengths: of each text, shape (texts,). places: which
    place it is a text for, shape (texts,), from 0. log_prior: log π of the word, shape (texts,).
    words: the word, one for each text.
    """

    targets: Tensor
    lengths: Tensor
    places: Tensor
    log_prior: Tensor
    words: tuple[Word, ...]

    @property
    def count(self) -> int:
        """How many places there are."""
        return int(self.places.max()) + 1


def written(log_posteriors: Tensor, spelling: Spelling) -> Text:
    """The words of the best path, shape (frames, classes); one word of no symbols for silence."""
    path = torch.unique_consecutive(log_posteriors.argmax(-1)).tolist()
    words: list[list[int]] = [[]]
    for symbol in path:
        if symbol == spelling.delimiter:
            words.append([])
        elif symbol != spelling.blank:
            words[-1].append(symbol)
    return tuple(tuple(word) for word in words if word) or ((),)


def own_words(recordings: Sequence[Tensor], spelling: Spelling) -> list[Places]:
    """What each recording may say in the speaker's own words.

    recordings: log-posteriors of all that was heard, each of shape (frames, classes).
    """
    texts = [written(each, spelling) for each in recordings]
    counts: Mapping[Word, float] = Counter(word for text in texts for word in text)
    near = _nearest(counts)
    found: list[dict[Text, Tensor]] = [{} for _ in recordings]  # likelihoods: priors alone change
    for _ in range(ROUNDS):
        log_prior = _log_prior(counts)
        heard: Counter[Word] = Counter()
        chosen = []
        for recording, text, known in zip(recordings, texts, found, strict=True):
            places = _places(text, near, log_prior, spelling)
            if text not in known:
                known[text] = likelihoods(recording[None], [places], spelling)
            likely = posterior(known[text], [places])
            for word, share in zip(places.words, likely.tolist(), strict=True):
                heard[word] += share
            chosen.append(_likeliest(places, likely))
        unchanged = chosen == texts
        texts, counts = chosen, heard
        if unchanged:
            break
    used = {word for text in texts for word in text}
    counts = {word: counts[word] for word in used}
    near, log_prior = _nearest(counts), _log_prior(counts)
    return [
        _likely(recording, _places(text, near, log_prior, spelling), spelling)
        for recording, text in zip(recordings, texts, strict=True)
    ]


def expected_loss(
    log_posteriors: Tensor, recordings: Sequence[Places], spelling: Spelling
) -> Tensor:
    """The loss at the top of this module, the mean over the places of each recording.

    log_posteriors: of recordings of one length, shape (recordings, frames, classes). recordings:
    what each may say. Returns shape (recordings,).
    """
    found = likelihoods(log_posteriors, recordings, spelling)
    expected = -posterior(found, recordings) * found
    owner = owner_of_texts(recordings)
    places = torch.tensor([each.count for each in recordings])
    total = torch.zeros(len(recordings), dtype=found.dtype).index_add(0, owner, expected)
    return total / places


def slopes(found: Tensor, recordings: Sequence[Places]) -> Tensor:
    """The derivative of a recording's `expected_loss` by the log-likelihood of each of its texts.

    found: from `likelihoods`, shape (texts of all,). With E the expectation under q in a place,
    and a recording of n places: -q(w) · (1 + τ (log p(w) - E log p)) / n, since a likelihood
    changes q too. Returns shape (texts of all,).
    """
    likely, place = posterior(found, recordings), _place(recordings)
    mean = torch.zeros(int(place.max()) + 1).index_add(0, place, likely * found)
    counts = torch.tensor([each.count for each in recordings])[owner_of_texts(recordings)]
    return -likely * (1 + TEMPER * (found - mean[place])) / counts


def fitted(recordings: Sequence[Tensor], spelling: Spelling) -> tuple[list[Places], list[float]]:
    """What each may say in words that are found in them all, and the expected loss of each.

    recordings: log-posteriors, each of shape (frames, classes).
    """
    said = own_words(recordings, spelling)
    return said, expected_losses(recordings, said, spelling)


def expected_losses(
    recordings: Sequence[Tensor], said: Sequence[Places], spelling: Spelling
) -> list[float]:
    """The `expected_loss` of each of recordings of any length.

    recordings: log-posteriors, each of shape (frames, classes). said: what each may say.
    """
    return [
        float(expected_loss(recording[None], [places], spelling))
        for recording, places in zip(recordings, said, strict=True)
    ]


def as_written(
    log_posteriors: Sequence[Tensor], recordings: Sequence[Places], spelling: Spelling
) -> float:
    """The share of the words that the model writes which are the likeliest of the own words too.

    log_posteriors: of each recording, shape (frames, classes), for which `own_words` found its
    places. Low for somebody who is heard so badly that most has to be guessed.
    """
    same = [
        word == likeliest
        for heard, places in zip(log_posteriors, recordings, strict=True)
        for word, likeliest in zip(
            written(heard, spelling),
            _likeliest(places, _shares(heard, places, spelling)),
            strict=True,
        )
    ]
    return sum(same) / len(same)


def as_shares(after: Sequence[float], before: Sequence[float]) -> tuple[list[float], list[float]]:
    """Both losses of each recording as shares of their mean plus the usual: no few of them rule."""
    usual = fmean(before)
    scales = [(one + other) / 2 + usual for one, other in zip(after, before, strict=True)]
    scales = [scale or 1.0 for scale in scales]
    return (
        [loss / scale for loss, scale in zip(after, scales, strict=True)],
        [loss / scale for loss, scale in zip(before, scales, strict=True)],
    )


def likelihoods(
    log_posteriors: Tensor,
    recordings: Sequence[Places],
    spelling: Spelling,
    frames: Tensor | None = None,
) -> Tensor:
    """Log-likelihood under CTC of every text of every recording, shape (texts of all,).

    frames: how many count of each recording, shape (recordings,); all where it is not given.
    """
    owner = owner_of_texts(recordings)
    if frames is None:
        frames = torch.full((len(recordings),), log_posteriors.shape[1])
    losses = ctc_loss(
        log_posteriors.float().cpu()[owner].transpose(0, 1),
        all_targets(recordings),
        frames[owner],
        torch.cat([each.lengths for each in recordings]),
        blank=spelling.blank,
        reduction="none",
    )
    return (-losses).clamp_min(IMPOSSIBLE)


def posterior(found: Tensor, recordings: Sequence[Places]) -> Tensor:
    """q of the formula for every text, from log-likelihoods; adds up to 1 in every place."""
    scores = TEMPER * found + torch.cat([each.log_prior for each in recordings])
    index = _place(recordings)
    places = int(index.max()) + 1
    most = torch.full((places,), -torch.inf).scatter_reduce(0, index, scores, "amax")
    shares = (scores - most[index]).exp()
    return shares / torch.zeros(places).index_add(0, index, shares)[index]


def _shares(recording: Tensor, places: Places, spelling: Spelling) -> Tensor:
    """q of every text of one recording, log-posteriors of shape (frames, classes)."""
    return posterior(likelihoods(recording[None], [places], spelling), [places])


def _likeliest(places: Places, shares: Tensor) -> Text:
    """The word of the greatest share in each place."""
    best: list[tuple[float, Word]] = [(-1.0, ())] * places.count
    for place, word, share in zip(
        places.places.tolist(), places.words, shares.tolist(), strict=True
    ):
        best[place] = max(best[place], (share, word))
    return tuple(word for _, word in best)


def _place(recordings: Sequence[Places]) -> Tensor:
    """Which place of all recordings each text is for, shape (texts of all,)."""
    counts = torch.tensor([each.count for each in recordings])
    before = counts.cumsum(0) - counts  # places of the recordings before it
    return torch.cat([each.places for each in recordings]) + before[owner_of_texts(recordings)]


def all_targets(recordings: Sequence[Places]) -> Tensor:
    """The symbols of each text, shape (texts of all, longest)."""
    return pad_sequence([row for each in recordings for row in each.targets], batch_first=True)


def owner_of_texts(recordings: Sequence[Places]) -> Tensor:
    """Which recording each text is of, from 0, shape (texts of all,)."""
    sizes = torch.tensor([len(each.words) for each in recordings])
    return torch.arange(len(recordings)).repeat_interleave(sizes)


def _log_prior(counts: Mapping[Word, float]) -> dict[Word, float]:
    shares = torch.tensor([*counts.values()]) + SMOOTHING
    return dict(zip(counts, (shares / shares.sum()).log().tolist(), strict=True))


def _nearest(words: Mapping[Word, float]) -> dict[Word, list[Word]]:
    """For each word the `NEAR` that are spelt most like it, itself the first."""

    def of(word: Word) -> Iterator[tuple[float, float, Word]]:
        for other in words:
            longest = max(len(word), len(other), 1)
            yield _distance(*sorted((word, other))) / longest, -words[other], other

    return {word: [other for _, _, other in sorted(of(word))[:NEAR]] for word in words}


@lru_cache(maxsize=1 << 18)
def _distance(word: Word, other: Word) -> int:
    """Symbols to insert, delete or replace (Levenshtein)."""
    row = list(range(len(other) + 1))
    for above, symbol in enumerate(word):
        diagonal, row[0] = row[0], above + 1
        for column, another in enumerate(other, start=1):
            replaced = diagonal + (symbol != another)
            diagonal = row[column]
            row[column] = min(row[column] + 1, row[column - 1] + 1, replaced)
    return row[-1]


def _places(
    text: Text,
    near: Mapping[Word, Sequence[Word]],
    log_prior: Mapping[Word, float],
    spelling: Spelling,
) -> Places:
    targets, places, words = [], [], []
    for place, there in enumerate(text):
        for word in near[there]:
            if word or len(text) == 1:  # silence is no word among others
                targets.append(_spelt((*text[:place], word, *text[place + 1 :]), spelling))
                places.append(place)
                words.append(word)
    return Places(
        targets=pad_sequence(targets, batch_first=True),
        lengths=torch.tensor([len(each) for each in targets]),
        places=torch.tensor(places),
        log_prior=torch.tensor([log_prior[word] for word in words]),
        words=tuple(words),
    )


def _spelt(text: Text, spelling: Spelling) -> Tensor:
    symbols: list[int] = []
    for number, word in enumerate(text):
        if number and spelling.delimiter is not None:
            symbols.append(spelling.delimiter)
        symbols.extend(word)
    return torch.tensor(symbols, dtype=torch.long)


def _likely(recording: Tensor, places: Places, spelling: Spelling) -> Places:
    """The same without the words that are unlikely where they would stand."""
    shares = _shares(recording, places, spelling)
    kept = shares >= UNLIKELY
    lengths = places.lengths[kept]
    return Places(
        targets=places.targets[kept, : int(lengths.max())],
        lengths=lengths,
        places=places.places[kept],
        log_prior=places.log_prior[kept],
        words=tuple(word for word, keep in zip(places.words, kept.tolist(), strict=True) if keep),
    )
