"""Stage 4 for photos: tables over results, and the report that says what they are of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fpspeech.evaluation import bootstrap_interval, csv_table, markdown_table, paired_comparison
from fpspeech.evaluation.tables import Cell
from fpspeech.image_results import DENSE, DENSE_SYSTEM, ImageResult
from fpspeech.output_folder import whole_folder
from fpspeech.results import ResultsError

_PRIOR_NOTE = """\
- "+ prior": the output layer knows the shares of the classes among the photos calibrated on, found
  without labels. Compare it with "dense + prior": what the prior gives is no gain of pruning
"""


def write_image_report(
    folder: Path,
    results: Sequence[ImageResult],
    *,
    model: str,
    personal_method: str,
    seed: int,
) -> None:
    """Writes `report.md`, the table over all users, and each user as Markdown, CSV and JSON.

    What was there before is replaced as a whole. Raises ResultsError, see `image_rows`.
    """
    rows = image_rows(results, seed=seed)
    overall, each = image_table(results, seed=seed), image_users_table(rows)
    dense = [result for result in results if result.system == DENSE_SYSTEM]
    photos = sum(len(result.labels) for result in dense)
    with_prior = any(result.system.output_prior != "none" for result in results)
    text = f"""# Photos of {len(dense)} users: personalized by pruning

- Model: {model}
- {photos} test photos, none of them adapted on; labels are read to test alone
- "all classes": the answer is chosen among all classes of the model; "the user's": among the \
user's. Choosing among few is easier: compare a number with the dense one of the same column only
{_PRIOR_NOTE if with_prior else ""}- Intervals: 95 % bootstrap over users, then their photos; \
seed {seed}
- `{personal_method}` makes the personal models

{overall}
By user:

{each}"""
    with whole_folder(folder, overwrite=True) as draft:
        (draft / "overall.md").write_text(overall, encoding="utf-8")
        (draft / "users.md").write_text(each, encoding="utf-8")
        (draft / "users.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        (draft / "users.csv").write_text(image_rows_csv(rows), encoding="utf-8")
        (draft / "report.md").write_text(text, encoding="utf-8")


def image_rows(results: Sequence[ImageResult], *, seed: int = 0) -> list[dict[str, Any]]:
    """A row of numbers for each user and model, against dense on the same photos.

    Raises ResultsError where a user's dense model was not measured, or on other photos.
    """
    dense = {each.user: each for each in results if each.system == DENSE_SYSTEM}
    rows = []
    for each in results:
        base = dense.get(each.user)
        if base is None:
            raise ResultsError(f"{each.user}: dense was not measured: run stage 1")
        if base.labels != each.labels:
            raise ResultsError(
                f"{each.user}: {each.system.folder_name} and dense were measured on different "
                "photos: measure again in a new folder"
            )
        ones = np.ones(len(each.labels))
        row: dict[str, Any] = {"user": each.user, **asdict(each.system), "reached": each.reached}
        row["photos"] = len(each.labels)
        pairs = (
            ("all", base.wrong_all, each.wrong_all),
            ("user", base.wrong_user, each.wrong_user),
        )
        for name, before, after in pairs:
            paired = paired_comparison(before, after, ones, seed=seed)
            row[f"accuracy_{name}_classes"] = 1 - float(after.mean())
            # 0.0 - x: no difference must not read -0.0. Errors that fall are accuracy that rises.
            row[f"change_{name}_classes"] = 0.0 - paired.difference
            row[f"change_{name}_low"] = 0.0 - paired.high
            row[f"change_{name}_high"] = 0.0 - paired.low
            row[f"probability_better_{name}"] = paired.probability_better
        row["accuracy_other_classes"] = each.others_rate
        rows.append(row)
    return rows


def image_rows_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as comma-separated values at full precision."""
    return csv_table(list(rows[0]) if rows else [], [list(row.values()) for row in rows])


def image_table(results: Sequence[ImageResult], *, seed: int = 0) -> str:
    """Markdown: accuracy in percent over all users' test photos, with its 95 % interval.

    Among all classes and among the user's for each sparsity; last, among all classes on photos of
    other classes. The interval resamples users first, then their photos. Models that not all users
    were measured with are left out.
    """
    users = {each.user for each in results}
    sparsities = sorted({each.system.sparsity for each in results if each.system.sparsity})
    headers = ["method", "calibrated on", "BatchNorm"]
    for sparsity in sparsities:
        headers += [f"{sparsity:.0%} zeros, all classes", f"{sparsity:.0%}, the user's"]
    headers += [f"other classes at {', '.join(f'{sparsity:.0%}' for sparsity in sparsities)}"]
    lines: list[list[Cell]] = []
    kinds = dict.fromkeys(replace(each.system, sparsity=0.0) for each in results)
    for kind in kinds:
        cells, others = [], []
        for sparsity in sparsities:
            system = kind if kind.method == DENSE else replace(kind, sparsity=sparsity)
            same = [each for each in results if each.system == system]
            if {each.user for each in same} != users:
                cells += ["", ""]
                continue
            cells += [
                _cell([each.wrong_all for each in same], seed),
                _cell([each.wrong_user for each in same], seed),
            ]
            rates = [each.others_rate for each in same if each.others_rate is not None]
            others += [f"{100 * np.mean(rates):.1f}"] if rates else []
        lines.append([kind.title, kind.calibration, kind.batch_norm, *cells, ", ".join(others)])
    return markdown_table(headers, lines)


def image_users_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line a user and model, in percent, with the change from dense."""
    headers = ["user", "method", "calibrated on", "BatchNorm", "zeros", "photos"]
    headers += ["all classes", "minus dense", "95 % interval", "P(better)", "the user's"]
    lines: list[list[Cell]] = []
    for row in rows:
        is_dense = row["method"] == DENSE and row["output_prior"] == "none"
        low, high = 100 * row["change_all_low"], 100 * row["change_all_high"]
        lines.append(
            [
                row["user"],
                row["method"] if row["output_prior"] == "none" else f"{row['method']} + prior",
                row["calibration"],
                row["batch_norm"],
                None if is_dense else f"{row['sparsity']:.0%}",
                row["photos"],
                f"{100 * row['accuracy_all_classes']:.1f}",
                None if is_dense else f"{100 * row['change_all_classes']:+.1f}",
                None if is_dense else f"[{low:+.1f}, {high:+.1f}]",
                None if is_dense else f"{row['probability_better_all']:.2f}",
                f"{100 * row['accuracy_user_classes']:.1f}",
            ]
        )
    return markdown_table(headers, lines)


def _cell(wrong: Sequence[NDArray[np.bool_]], seed: int) -> str:
    together = np.concatenate(wrong)
    groups = [number for number, each in enumerate(wrong) for _ in each]
    ends = bootstrap_interval(together, np.ones(together.size), groups=groups, seed=seed)
    low, high = 100 * (1 - ends.high), 100 * (1 - ends.low)
    return f"{100 * (1 - together.mean()):.1f} [{low:.1f}, {high:.1f}]"
