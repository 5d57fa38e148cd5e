"""One speaker, many masks: the word error rate of every method at every sparsity, beside dense.

The recordings are listened to once (and again for every method in sequential order); each mask is
made from the same statistics and measured on the same held-back recordings, so that rows differ by
the mask alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fpspeech.adaptation import Adaptation, adapt_to, before_pruning, require_generic
from fpspeech.compare_baselines import run_baseline
from fpspeech.config import Config
from fpspeech.corpora import UnusableAudio, Utterance, contents, inspect_recording, with_contents
from fpspeech.evaluate_speech import Recognition, choose_test_set, compare, recognise
from fpspeech.evaluation import (
    Paired,
    TextNormalizer,
    bootstrap_interval,
    markdown_table,
    percentage,
    percentage_interval,
)
from fpspeech.generic import Generic
from fpspeech.listening import Listener
from fpspeech.methods import OWN, calibration_of, config_of
from fpspeech.models import SpeechModel
from fpspeech.personal import Recordings
from fpspeech.personalize_speech import select_layers_of
from fpspeech.pruning import products_for, sparsity_of
from fpspeech.results import Result


class ComparisonError(ValueError):
    """A corpus that gives nothing to compare on."""


@dataclass(frozen=True)
class Row:
    """One mask of one speaker, measured.

    method: "dense" for the base model, else see `config_of`. sparsity: as asked. reached: among
    the prunable weights (whole weights a row). against_dense: paired, on the same recordings.
    others: the same model on other speakers' recordings, where that was asked for.
    listening_seconds: wall time of listening, which serves every sparsity; pruning_seconds: of
    making this mask.
    """

    speaker: str
    method: str
    sparsity: float
    reached: float
    recognition: Recognition
    against_dense: Paired | None
    others: Recognition | None = None
    listening_seconds: float = 0.0
    pruning_seconds: float = 0.0

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
            "others_wer": None if self.others is None else self.others.wer,
            "listening_seconds": round(self.listening_seconds, 2),
            "pruning_seconds": round(self.pruning_seconds, 2),
            "utterance_errors": errors.utterance_errors.tolist(),
            "utterance_words": errors.utterance_words.tolist(),
            "probability_better_than_dense": (
                None if self.against_dense is None else self.against_dense.probability_better
            ),
        }


def compare_methods(
    model: SpeechModel,
    recordings: Mapping[str, Sequence[Utterance]],
    test: Sequence[Utterance],
    config: Config,
    methods: Sequence[str],
    sparsities: Sequence[float],
    normalizer: TextNormalizer,
    *,
    generic: Generic | None = None,
    baselines: Sequence[str] = (),
    others: Sequence[Utterance] = (),
    listener: Listener | None = None,
) -> list[Row]:
    """Measures one speaker: dense, then every method at every sparsity.

    recordings: to listen to, transcripts unused, by calibration: "own" at least, see
    `methods.CALIBRATIONS`. test: transcribed recordings; those that are also the speaker's own to
    listen to are left out. config: what a method does not say. methods: see `config_of`. generic:
    see `adapt_to`. baselines: see `run_baseline`. others: transcribed recordings of other
    speakers, to measure forgetting on.
    """
    speaker = test[0].speaker
    configs = {method: config_of(method, config) for method in methods}
    selection = select_layers_of(model, config)
    for each in configs.values():  # before the first minute is spent
        require_generic(each, generic, products_for(selection.layers, each.pruning))
    test_set = choose_test_set(test, Recordings.of(contents(recordings[OWN])), listener)
    seed = config.pruning.seed
    dense = recognise(model, test_set, normalizer, seed=seed)
    other_set = choose_test_set([replace(each, split=None) for each in others]) if others else None

    def on_others() -> Recognition | None:
        return recognise(model, other_set, normalizer, seed=seed) if other_set else None

    rows = [Row(speaker, "dense", 0.0, 0.0, dense, None, on_others())]
    for name in baselines:
        run = run_baseline(name, model, recordings[OWN], test_set, normalizer, seed=seed)
        against = compare(dense, run.recognition, seed=seed)
        rows.append(
            Row(
                speaker,
                name,
                0.0,
                0.0,
                run.recognition,
                against,
                listening_seconds=run.learning_seconds,
            )
        )
    adaptations: dict[tuple[str, tuple[object, ...]], Adaptation] = {}
    for method in methods:
        kind = calibration_of(method), before_pruning(configs[method])
        if kind not in adaptations:
            alike = [
                other
                for name, other in configs.items()
                if (calibration_of(name), before_pruning(other)) == kind
            ]
            products = [products_for(selection.layers, other.pruning) for other in alike]
            adaptations[kind] = adapt_to(
                model,
                selection.layers,
                recordings[kind[0]],
                _listening_for(alike, config),
                products=frozenset().union(*products),
                generic=generic,
                listener=listener,
            )
        adaptation = adaptations[kind]
        for sparsity in sparsities:
            pruning = replace(configs[method].pruning, sparsity=sparsity)
            started = time.perf_counter()
            found = adaptation.prune(replace(configs[method], pruning=pruning))
            seconds = time.perf_counter() - started
            with adaptation.apply(found):
                pruned = recognise(model, test_set, normalizer, seed=seed)
                forgotten = on_others()
            rows.append(
                Row(
                    speaker,
                    method,
                    sparsity,
                    sparsity_of(found.masks),
                    pruned,
                    compare(dense, pruned, seed=seed),
                    forgotten,
                    listening_seconds=adaptation.seconds,
                    pruning_seconds=seconds,
                )
            )
    return rows


def _listening_for(alike: Sequence[Config], config: Config) -> Config:
    """How to listen so that all these methods, normalised alike, can be made from it.

    In sequential order alone nothing is to be heard beforehand, but for an allocation.
    """
    once = any(
        each.pruning.order == "independent" or each.allocation != "uniform" for each in alike
    )
    order = "independent" if once else "sequential"
    # What the methods themselves need of other people's numbers was looked at before.
    return replace(
        alike[0],
        pruning=replace(config.pruning, order=order, score="obs", shrinkage="none"),
        allocation="uniform",
    )


def compare_speakers(
    model: SpeechModel,
    utterances: Sequence[Utterance],
    speakers: Sequence[str],
    config: Config,
    methods: Sequence[str],
    sparsities: Sequence[float],
    normalizer: TextNormalizer,
    *,
    generic: Generic | None = None,
    generic_recordings: Sequence[Utterance] = (),
    baselines: Sequence[str] = (),
    minutes: float | None = None,
    forgetting: int = 0,
    progress: Callable[[str], None] = lambda speaker: None,
) -> list[Row]:
    """`compare_methods` for every speaker named, or all; by the splits marked in the corpus.

    "another" calibrates on the recordings of the speaker who comes next in the alphabet, "generic"
    on as much audio of `generic_recordings` as the speaker has. minutes: the most audio to listen
    to. forgetting: how many test recordings of other speakers are measured, too.
    Raises ComparisonError for a speaker without recordings marked `adapt` and `test`, and where a
    method's calibration has none.
    """
    rows: list[Row] = []
    known = sorted({utterance.speaker for utterance in utterances})
    wanted = {calibration_of(method) for method in methods}
    by_speaker = {
        name: [replace(u, text=None) for u in utterances if (u.speaker, u.split) == (name, "adapt")]
        for name in known
    }
    listening = [name for name in known if by_speaker[name]]
    if "another" in wanted and len(listening) < 2:
        raise ComparisonError("one speaker alone: nobody else's recordings to calibrate on")
    if "generic" in wanted and not generic_recordings:
        raise ComparisonError(
            "a method is calibrated on generic recordings, and none were given: say where "
            "recordings of other people are (--generic-audio)"
        )
    for speaker in speakers or known:
        if speaker not in known:
            raise ComparisonError(f"no speaker is named {speaker!r}: expected one of {known}")
        mine = [utterance for utterance in utterances if utterance.speaker == speaker]
        adapt = by_speaker[speaker]
        test = [utterance for utterance in mine if utterance.split == "test"]
        if not adapt or not test:
            if not speakers:
                continue  # a speaker of the training set, say
            raise ComparisonError(
                f"{speaker} has {len(adapt)} recordings marked 'adapt' and {len(test)} marked "
                "'test': expected some of both"
            )
        progress(speaker)
        recordings: dict[str, Sequence[Utterance]] = {OWN: at_most(adapt, minutes)}
        if "another" in wanted:
            following = listening[(listening.index(speaker) + 1) % len(listening)]
            recordings["another"] = at_most(by_speaker[following], minutes)
        if "generic" in wanted:
            amount = sum(_seconds(each) for each in recordings[OWN]) / 60
            recordings["generic"] = at_most(_but_for(mine, generic_recordings), amount)
        others = [u for u in utterances if u.split == "test" and u.speaker != speaker]
        rows += compare_methods(
            model,
            recordings,
            test,
            config,
            methods,
            sparsities,
            normalizer,
            generic=generic,
            baselines=baselines,
            others=others[:: max(1, len(others) // forgetting)][:forgetting] if forgetting else (),
        )
    if not rows:
        raise ComparisonError("no speaker has recordings marked both 'adapt' and 'test'")
    return rows


def at_most(utterances: Iterable[Utterance], minutes: float | None) -> list[Utterance]:
    """The first recordings that together have so many minutes; the one that crosses it is in."""
    if minutes is None:
        return list(utterances)
    found: list[Utterance] = []
    seconds = 0.0
    for utterance in utterances:
        if seconds >= 60 * minutes:
            break
        found.append(utterance)
        seconds += _seconds(utterance)
    return found


def _seconds(utterance: Utterance) -> float:
    try:
        return inspect_recording(utterance.audio).seconds
    except UnusableAudio:
        return 0.0  # it is skipped, with a line, when it is to be heard


def _but_for(mine: Sequence[Utterance], others: Sequence[Utterance]) -> Iterator[Utterance]:
    """The others' recordings, without copies of mine: a control must not hear the speaker."""
    known = contents(mine)
    return (each for each, content in with_contents(others) if content not in known)


def results_of(rows: Sequence[Row]) -> list[Result]:
    """The rows as results, for tables over speakers with paired comparisons."""
    return [
        Result(
            row.speaker,
            row.method,
            row.sparsity,
            row.reached,
            row.recognition.errors,
            row.recognition.hallucinations,
        )
        for row in rows
    ]


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


def forgetting_table(rows: Sequence[Row]) -> str:
    """Markdown: WER on other speakers' recordings, a line a method and sparsity.

    A line joins the models of all speakers: errors over words of the whole.
    """
    lines = []
    for system in dict.fromkeys((row.method, row.sparsity) for row in rows):
        found = [row for row in rows if (row.method, row.sparsity) == system]
        own = [row.recognition for row in found]
        others = [row.others for row in found if row.others is not None]
        lines.append([system[0], f"{system[1]:.0%}", _cell(own), _cell(others)])
    return markdown_table(["method", "zeros", "their own speakers", "other speakers"], lines)


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
