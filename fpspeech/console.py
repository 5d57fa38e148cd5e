"""What a person sees while a command runs: progress in minutes of audio, notes, errors.

Everything here goes to standard error; results alone go to standard output.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from fpspeech.adaptation import pruning_for
from fpspeech.compare import Row, comparison_table, forgetting_table, results_of
from fpspeech.config import Config
from fpspeech.corpora import SpeakerSummary
from fpspeech.evaluate_speech import Evaluation, Recognition
from fpspeech.evaluation import Interval, percentage, percentage_interval
from fpspeech.listening import Listener, Skipped
from fpspeech.models import PretrainedModel
from fpspeech.output_folder import whole_folder
from fpspeech.personal import Personal
from fpspeech.personalize_speech import Plan
from fpspeech.summaries import summaries_markdown, summarise

notes = Console(stderr=True)
results = Console()


class _Minutes(ProgressColumn):
    """Minutes of audio done and in all."""

    def render(self, task: Task) -> Text:
        total = f"{task.total / 60:.1f}" if task.total else "?"
        return Text(f"{task.completed / 60:.1f} / {total} min of audio")


@contextmanager
def listening_progress(
    what: str, seconds: float, stop: Callable[[], bool] = lambda: False
) -> Iterator[Listener]:
    """A progress bar over `seconds` of audio; a line for each recording that is skipped."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        _Minutes(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes) as progress:
        task = progress.add_task(what, total=seconds or None)

        def skipped(recording: Skipped, message: str) -> None:
            progress.console.print(f"[yellow]skipped[/] {escape(message)}", soft_wrap=True)

        def heard(done: float) -> None:
            progress.advance(task, done)

        def tuned(tuning: str, step: int, steps: int) -> None:
            tuning = f"{tuning}, step {step} of {steps}"
            progress.update(task, description=what if step == steps else tuning)

        yield Listener(heard=heard, skipped=skipped, stop=stop, tuned=tuned)


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a request to stop at the next window; a second one is final."""
    requested = False

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        notes.print("stopping after this window; what was heard is kept (Ctrl-C again: at once)")

    before = signal.signal(signal.SIGINT, request)
    try:
        yield lambda: requested
    finally:
        signal.signal(signal.SIGINT, before)


def show_speakers(summaries: Sequence[SpeakerSummary], as_json: bool) -> None:
    """Who is in the recordings, and how much of each."""
    if as_json:
        print(json.dumps([asdict(summary) for summary in summaries], ensure_ascii=False))
        return
    table = Table()
    table.add_column("speaker")
    for column in ("utterances", "minutes", "adapt", "test", "transcribed", "unusable"):
        table.add_column(column, justify="right")
    for each in summaries:
        counts = (each.adapt, each.test, each.transcribed, each.unusable)
        table.add_row(
            escape(each.name),
            str(each.utterances),
            f"{each.seconds / 60:.1f}",
            *(str(count) for count in counts),
        )
    results.print(table)


def show_plan(model: PretrainedModel, plan: Plan, config: Config, as_json: bool) -> None:
    """What a personalization would prune, keep and write."""
    layers = plan.selection.layers
    sparsity = pruning_for(model, config).sparsity_for
    if as_json:
        value = {
            "base": model.source.id,
            "parameters": plan.parameters,
            "prunable_weights": plan.prunable,
            "artifact_bytes": plan.artifact_bytes,
            "layers": {
                layer.name: {"shape": layer.shape, "sparsity": sparsity(layer.name)}
                for layer in layers
            },
            "excluded": [asdict(exclusion) for exclusion in plan.selection.excluded],
        }
        print(json.dumps(value))
        return
    table = Table(title=f"{escape(model.source.id)}: layers to prune")
    table.add_column("layer")
    table.add_column("groups x outputs x inputs", justify="right")
    table.add_column("weights", justify="right")
    table.add_column("sparsity", justify="right")
    for layer in layers:
        shape = " x ".join(str(size) for size in layer.shape)
        table.add_row(layer.name, shape, f"{layer.size:,}", f"{sparsity(layer.name):.0%}")
    results.print(table)
    table = Table(title="left dense")
    table.add_column("layer")
    table.add_column("weights", justify="right")
    table.add_column("reason")
    for exclusion in plan.selection.excluded:
        table.add_row(exclusion.name, f"{exclusion.size:,}", escape(exclusion.reason))
    results.print(table)
    results.print(
        f"{plan.prunable:,} of {plan.parameters:,} parameters can be pruned; the personal model "
        f"will take about {decimal(plan.artifact_bytes)} (1 bit a weight), beside a base of "
        f"{decimal(model.source.weight_bytes)}"
    )


def show_personal(
    personal: Personal, folder: Path, held: int, following: str, as_json: bool
) -> None:
    """What was heard, pruned and written, and the command to go on with."""
    report = personal.report
    size = sum(path.stat().st_size for path in folder.iterdir())
    if as_json:
        value = {"folder": str(folder), "bytes": size, "held_out": held, **report}
        print(json.dumps(value))
        return
    skipped = ", ".join(f"{count} {reason}" for reason, count in report["skipped"].items())
    table = Table(show_header=False)
    table.add_row("heard", f"{report['recordings']} recordings, {report['seconds'] / 60:.1f} min")
    if report["silent_seconds"]:
        table.add_row("silence left out", f"{report['silent_seconds'] / 60:.1f} min")
    table.add_row("skipped", skipped or "none")
    if held:
        table.add_row("held out", f"{held} recordings")
    if (account := report.get("normalization")) is not None:
        used = ", ".join(f"{name} {share:g}" for name, share in account["used"].items() if share)
        table.add_row("normalised", used or f"no: {account.get('reason') or 'nothing asked for'}")
    for what, name in (("evolved", "evolution"), ("output layer", "head")):
        if (account := report.get(name)) is not None:
            before, after = account["loss_other_half"]
            better = f"yes: loss {before:.3f} -> {after:.3f} on held-back audio"
            table.add_row(what, f"no: {account['reason']}" if account["reason"] else better)
    if (account := report.get("allocation")) is not None:
        before, after = account["divergence_other_half"]
        closer = f"searched: divergence {before:.3f} -> {after:.3f} on held-back audio"
        table.add_row("allocation", closer if account["searched"] else f"owl: {account['reason']}")
    table.add_row(
        "pruned",
        f"{report['pruned_weights']:,} of {report['prunable_weights']:,} weights "
        f"({report['sparsity']:.1%}); {report['parameters']:,} parameters in all",
    )
    if (account := report.get("refit")) is not None:
        before, after = account["divergence"]
        nearer = f"{before:.3f} -> {after:.3f} nats from the dense model"
        table.add_row("refitted", f"output layer: {nearer}")
    for exclusion in report["excluded"]:
        table.add_row("left dense", f"{exclusion['name']}: {escape(exclusion['reason'])}")
    table.add_row("took", f"{sum(report['wall_seconds'].values()):.1f} s")
    table.add_row("written", f"{escape(str(folder))} ({decimal(size)})")
    results.print(table)
    results.print(f"next: {escape(following)}", soft_wrap=True)


def show_evaluation(evaluation: Evaluation, personal: Personal, as_json: bool) -> None:
    """Word error rates, dense beside personal, and how sure the difference is."""
    rows = {"dense": evaluation.dense, "personal": evaluation.personal}
    test_set, comparison = evaluation.test_set, evaluation.comparison
    errors = evaluation.dense.errors
    normalizer = errors.normalizer
    if as_json:
        value = {
            "recordings": len(test_set.utterances),
            "words": errors.words,
            "already_heard": test_set.already_heard,
            "without_text": test_set.without_text,
            "empty_references": errors.empty_references,
            "skipped": [asdict(skipped) for skipped in test_set.skipped],
            "sparsity": personal.report["sparsity"],
            "normalizer": f"{normalizer.name} {normalizer.version}",
            **{name: _numbers(row) for name, row in rows.items()},
            "difference": comparison.difference,
            "difference_interval": [comparison.low, comparison.high],
            "probability_personal_better": comparison.probability_better,
        }
        print(json.dumps(value))
        return
    table = Table(title=f"word error rate, {personal.report['sparsity']:.1%} of weights pruned")
    table.add_column("model")
    for column in ("WER", "95 % interval", "S", "D", "I", "words", "loops", "at cap"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        counts = (row.errors.substitutions, row.errors.deletions, row.errors.insertions)
        table.add_row(
            name,
            percentage(row.wer),
            percentage_interval(row.interval),
            *(str(count) for count in counts),
            str(row.errors.words),
            percentage(row.hallucinations.repetitive),
            percentage(row.hallucinations.at_cap),
        )
    results.print(table)
    interval = Interval(comparison.low, comparison.high)
    results.print(
        f"personal - dense: {percentage(comparison.difference, signed=True)} "
        f"{escape(percentage_interval(interval, signed=True))}; "
        f"probability that personal is better: {comparison.probability_better:.2f}"
    )
    results.print(
        f"on {len(test_set.utterances)} recordings; left out: {test_set.already_heard} used to "
        f"adapt, {test_set.without_text} without transcript, {len(test_set.skipped)} unusable, "
        f"{errors.empty_references} with an empty one; text: {normalizer.name} "
        f"{normalizer.version}"
    )


def show_comparison(rows: Sequence[Row], out: Path | None, overwrite: bool, as_json: bool) -> None:
    """The table of a comparison, and its files where a folder is given.

    table.md and table.json (no transcripts), paired.md (every model against dense on the same
    recordings, and over all speakers), and forgetting.md where that was measured.
    """
    table = comparison_table(rows)
    values = [row.as_json() for row in rows]
    if out is not None:
        with whole_folder(out, overwrite=overwrite) as draft:
            (draft / "table.md").write_text(table, encoding="utf-8")
            (draft / "table.json").write_text(json.dumps(values, indent=2) + "\n")
            lines = summarise(results_of(rows))
            (draft / "paired.md").write_text(summaries_markdown(lines), encoding="utf-8")
            if any(row.others is not None for row in rows):
                (draft / "forgetting.md").write_text(forgetting_table(rows), encoding="utf-8")
    print(json.dumps(values) if as_json else table)


def _numbers(recognition: Recognition) -> dict[str, Any]:
    errors = recognition.errors
    return {
        "wer": recognition.wer,
        "interval": [recognition.interval.low, recognition.interval.high],
        "substitutions": errors.substitutions,
        "deletions": errors.deletions,
        "insertions": errors.insertions,
        "insertion_rate": errors.insertion_rate,
        "repetitive": recognition.hallucinations.repetitive,
        "at_cap": recognition.hallucinations.at_cap,
    }
