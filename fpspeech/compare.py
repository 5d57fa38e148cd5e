"""One speaker, many masks: the word error rate of every method at every sparsity, beside dense.

The recordings are listened to once; each mask is made from the same statistics and measured on
the same held-back recordings, so that rows differ by the mask alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fpspeech.config import Config
from fpspeech.corpora import Utterance
from fpspeech.evaluate import Recognition, choose_test_set, compare, recognise
from fpspeech.evaluation import (
    Paired,
    TextNormalizer,
    bootstrap_interval,
    markdown_table,
    percentage,
    percentage_interval,
)
from fpspeech.listening import Listener, listen
from fpspeech.models import SpeechModel
from fpspeech.personal import Recordings
from fpspeech.personalize import pruning_for, select_layers_of
from fpspeech.pruning import (
    PruningConfig,
    apply_masks,
    make_masks,
    products_for,
    sparsity_of,
    update_weights,
)


class ComparisonError(ValueError):
    """A corpus that gives nothing to compare on."""


@dataclass(frozen=True)
class Row:
    """One mask of one speaker, measured.

    method: "dense" for the base model, else see `pruning_of`. sparsity: as asked. reached: among
    the prunable weights (whole weights a row). against_dense: paired, on the same recordings.
    """

    speaker: str
    method: str
    sparsity: float
    reached: float
    recognition: Recognition
    against_dense: Paired | None

    def as_json(self) -> Mapping[str, Any]:
        """Plain values, without transcripts."""
        errors = self.recognition.errors
        return {
            "speaker": self.speaker,
            "method": self.method,
            "sparsity": self.sparsity,
            "sparsity_reached": self.reached,
            "wer": self.recognition.wer,
            "low": self.recognition.interval.low,
            "high": self.recognition.interval.high,
            "substitutions": errors.substitutions,
            "deletions": errors.deletions,
            "insertions": errors.insertions,
            "words": errors.words,
            "utterances": len(errors.utterances),
            "probability_better_than_dense": (
                None if self.against_dense is None else self.against_dense.probability_better
            ),
        }


def compare_methods(
    model: SpeechModel,
    adapt: Sequence[Utterance],
    test: Sequence[Utterance],
    config: Config,
    methods: Sequence[str],
    sparsities: Sequence[float],
    normalizer: TextNormalizer,
    *,
    listener: Listener | None = None,
) -> list[Row]:
    """Measures one speaker: dense, then every method at every sparsity.

    adapt: recordings to listen to, transcripts unused. test: transcribed recordings; those that
    are also in `adapt` are left out. config: everything but score, update and sparsity. methods:
    see `pruning_of`.
    """
    speaker = test[0].speaker
    selection = select_layers_of(model, config)
    wanted = [pruning_of(method, config.pruning) for method in methods]
    products = [products_for(selection.layers, pruning) for pruning in wanted]
    heard = listen(
        model,
        selection.layers,
        adapt,
        products=frozenset().union(*products),
        product_stride=config.pruning.product_stride,
        window_seconds=config.window_seconds,
        batch_size=config.batch_size,
        listener=listener,
    )
    heard_recordings = Recordings.of(heard.fingerprints.values())
    test_set = choose_test_set(test, heard_recordings, listener)
    seed = config.pruning.seed
    dense = recognise(model, test_set, normalizer, seed=seed)
    rows = [Row(speaker, "dense", 0.0, 0.0, dense, None)]
    for method in methods:
        for sparsity in sparsities:
            pruning = replace(pruning_of(method, config.pruning), sparsity=sparsity)
            pruning = pruning_for(model, replace(config, pruning=pruning))
            masks = make_masks(selection.layers, heard.statistics, pruning)
            kept = update_weights(selection.layers, masks, heard.statistics, pruning)
            with apply_masks(selection.layers, masks, kept=kept):
                pruned = recognise(model, test_set, normalizer, seed=seed)
            against = compare(dense, pruned, seed=seed)
            rows.append(Row(speaker, method, sparsity, sparsity_of(masks), pruned, against))
    return rows


def pruning_of(method: str, pruning: PruningConfig) -> PruningConfig:
    """The settings of a method: a score, or score+update such as "wanda+least_squares".

    Raises PruningError for names that are not known.
    """
    score, _, update = method.partition("+")
    return replace(pruning, score=score, update=update or "none")


def compare_speakers(
    model: SpeechModel,
    utterances: Sequence[Utterance],
    speakers: Sequence[str],
    config: Config,
    methods: Sequence[str],
    sparsities: Sequence[float],
    normalizer: TextNormalizer,
    *,
    progress: Callable[[str], None] = lambda speaker: None,
) -> list[Row]:
    """`compare_methods` for every speaker named, or all; by the splits marked in the corpus.

    Raises ComparisonError for a speaker without recordings marked `adapt` and `test`.
    """
    rows: list[Row] = []
    known = sorted({utterance.speaker for utterance in utterances})
    for speaker in speakers or known:
        if speaker not in known:
            raise ComparisonError(f"no speaker is named {speaker!r}: expected one of {known}")
        mine = [utterance for utterance in utterances if utterance.speaker == speaker]
        adapt = [replace(u, text=None) for u in mine if u.split == "adapt"]
        test = [utterance for utterance in mine if utterance.split == "test"]
        if not adapt or not test:
            if not speakers:
                continue  # a speaker of the training set, say
            raise ComparisonError(
                f"{speaker} has {len(adapt)} recordings marked 'adapt' and {len(test)} marked "
                "'test': expected some of both"
            )
        progress(speaker)
        rows += compare_methods(model, adapt, test, config, methods, sparsities, normalizer)
    if not rows:
        raise ComparisonError("no speaker has recordings marked both 'adapt' and 'test'")
    return rows


def comparison_table(rows: Sequence[Row]) -> str:
    """Markdown: a line a speaker and method, a column a sparsity; WER with its 95 % interval.

    Where there are several speakers, all of them together come last: errors over words of the
    whole, the interval resampling speakers first.
    """
    sparsities = sorted({row.sparsity for row in rows})
    headers = ["speaker", "method"]
    headers += [f"{sparsity:.0%} zeros" if sparsity else "no zeros" for sparsity in sparsities]
    speakers = list(dict.fromkeys(row.speaker for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    lines = []
    for speaker in (*speakers, None) if len(speakers) > 1 else speakers:
        for method in methods:
            cells = []
            for sparsity in sparsities:
                same = [
                    row.recognition
                    for row in rows
                    if (row.method, row.sparsity) == (method, sparsity)
                    and speaker in (None, row.speaker)
                ]
                cells.append(_cell(same))
            lines.append([speaker or "all", method, *cells])
    return markdown_table(headers, lines)


def _cell(recognitions: Sequence[Recognition]) -> str:
    if not recognitions:
        return ""
    if len(recognitions) == 1:
        wer, interval = recognitions[0].wer, recognitions[0].interval
    else:
        errors = np.concatenate([each.errors.utterance_errors for each in recognitions])
        words = np.concatenate([each.errors.utterance_words for each in recognitions])
        groups = [n for n, each in enumerate(recognitions) for _ in each.errors.utterance_ids]
        wer = errors.sum() / words.sum()
        interval = bootstrap_interval(errors, words, groups=groups)
    return f"{percentage(wer)} {percentage_interval(interval)}"
