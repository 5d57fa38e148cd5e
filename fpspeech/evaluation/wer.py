"""Word error rate over a corpus, with substitutions, deletions and insertions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
from numpy.typing import NDArray

from fpspeech.evaluation.text import TextNormalizer, Unit

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class UtteranceErrors:
    """The errors of one utterance, counted on its normalised reference and hypothesis.

    A "word" is a character where the normaliser's unit is "character". The total is the edit
    distance; its split into S, D and I is that of one optimal alignment (there may be several).
    """

    id: str
    reference: str
    hypothesis: str
    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def words(self) -> int:
        """Words of the reference: H + S + D."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        """S + D + I."""
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class WordErrors:
    """The errors of a corpus under one normaliser.

    `utterances` holds those with a reference, in the order given; all totals and arrays are over
    them. `without_reference` holds those whose reference is empty after normalisation: they have
    no rate, so they stay out of it, and are kept here to be reported.
    """

    utterances: tuple[UtteranceErrors, ...]
    without_reference: tuple[UtteranceErrors, ...]
    normalizer: TextNormalizer

    @property
    def hits(self) -> int:
        """Words heard right: H."""
        return sum(utterance.hits for utterance in self.utterances)

    @property
    def substitutions(self) -> int:
        """Words heard as another: S."""
        return sum(utterance.substitutions for utterance in self.utterances)

    @property
    def deletions(self) -> int:
        """Words not heard: D."""
        return sum(utterance.deletions for utterance in self.utterances)

    @property
    def insertions(self) -> int:
        """Words heard but not said: I."""
        return sum(utterance.insertions for utterance in self.utterances)

    @property
    def words(self) -> int:
        """Words of the references: N."""
        return sum(utterance.words for utterance in self.utterances)

    @property
    def errors(self) -> int:
        """S + D + I."""
        return sum(utterance.errors for utterance in self.utterances)

    @property
    def wer(self) -> float:
        """Corpus rate (S + D + I) / N as a fraction, may exceed 1; nan without reference words."""
        return self.errors / self.words if self.words else float("nan")

    @property
    def insertion_rate(self) -> float:
        """I / N as a fraction, a sign of hallucination; nan without reference words."""
        return self.insertions / self.words if self.words else float("nan")

    @property
    def empty_references(self) -> int:
        """Utterances left out because their normalised reference is empty."""
        return len(self.without_reference)

    @property
    def words_on_empty_references(self) -> int:
        """Words the system heard in the utterances left out; not part of `insertions`."""
        return sum(utterance.insertions for utterance in self.without_reference)

    @property
    def utterance_ids(self) -> tuple[str, ...]:
        """Ids in the order of the arrays, shape = (n_utterances,)."""
        return tuple(utterance.id for utterance in self.utterances)

    @property
    def utterance_errors(self) -> Counts:
        """S + D + I of each utterance, shape = (n_utterances,)."""
        return np.array([utterance.errors for utterance in self.utterances], dtype=np.int64)

    @property
    def utterance_words(self) -> Counts:
        """Reference words of each utterance, all positive, shape = (n_utterances,)."""
        return np.array([utterance.words for utterance in self.utterances], dtype=np.int64)


def word_errors(
    ids: Sequence[str],
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalizer: TextNormalizer,
) -> WordErrors:
    """Count the errors of each hypothesis against its reference, both normalised.

    The three sequences are parallel, shape = (n_utterances,). Empty hypotheses count as deletions;
    empty references are set apart in `without_reference`.

    Raises ValueError where the lengths differ or an id occurs twice.
    """
    if not len(ids) == len(references) == len(hypotheses):
        raise ValueError(
            f"expected as many ids, references and hypotheses, found {len(ids)} ids, "
            f"{len(references)} references and {len(hypotheses)} hypotheses"
        )
    repeated = [id for id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"expected one line per utterance, found {len(repeated)} repeated ids, "
            f"the first is {repeated[0]!r}"
        )
    counted = [
        _utterance_errors(id, normalizer(reference), normalizer(hypothesis), normalizer.unit)
        for id, reference, hypothesis in zip(ids, references, hypotheses, strict=True)
    ]
    return WordErrors(
        utterances=tuple(utterance for utterance in counted if utterance.words),
        without_reference=tuple(utterance for utterance in counted if not utterance.words),
        normalizer=normalizer,
    )


def _utterance_errors(id: str, reference: str, hypothesis: str, unit: Unit) -> UtteranceErrors:
    output = (
        jiwer.process_characters(reference, hypothesis)
        if unit == "character"
        else jiwer.process_words(reference, hypothesis)
    )
    return UtteranceErrors(
        id=id,
        reference=reference,
        hypothesis=hypothesis,
        hits=output.hits,
        substitutions=output.substitutions,
        deletions=output.deletions,
        insertions=output.insertions,
    )
