"""One table from several `fpspeech compare --out` folders: every model against dense, in pairs.

    python -m recipes.joined_table exp/table exp/controls > table.md

All folders must hold the same speakers and test recordings. A line joins all speakers: errors over
words of the whole; intervals draw speakers first, then recordings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from fpspeech.evaluation import (
    bootstrap_interval,
    markdown_table,
    paired_comparison,
    percentage,
    percentage_interval,
)

HEADERS = ["method", "zeros", "WER", "95 % interval", "minus dense", "95 % interval", "P(better)"]
Rows = dict[str, dict[str, Any]]


def read_rows(folders: list[Path]) -> dict[tuple[str, float], Rows]:
    """(method, sparsity) -> speaker -> row; raises ValueError where a folder measured others."""
    systems: dict[tuple[str, float], Rows] = {}
    for folder in folders:
        for row in json.loads((folder / "table.json").read_text(encoding="utf-8")):
            systems.setdefault((row["method"], row["sparsity"]), {})[row["speaker"]] = row
    dense = systems["dense", 0.0]
    for (method, sparsity), rows in systems.items():
        for speaker, words in ((name, row["utterance_words"]) for name, row in rows.items()):
            if speaker not in dense or dense[speaker]["utterance_words"] != words:
                raise ValueError(
                    f"{method} at {sparsity:g}: {speaker} was measured on other recordings than "
                    "dense: join folders of the same corpus and settings"
                )
        if rows.keys() != dense.keys():
            missing = sorted(dense.keys() - rows.keys())
            raise ValueError(f"{method} at {sparsity:g} lacks {', '.join(missing)}")
    return systems


def joined_table(systems: dict[tuple[str, float], Rows]) -> str:
    """Markdown: a line a method and sparsity, dense first."""
    dense = systems["dense", 0.0]
    speakers = sorted(dense)
    groups = [
        number for number, name in enumerate(speakers) for _ in dense[name]["utterance_words"]
    ]
    grouped = groups if len(speakers) > 1 else None
    words = _together(dense, speakers, "utterance_words")
    plain = _together(dense, speakers, "utterance_errors")
    lines = []
    order = list(dict.fromkeys(method for method, _ in systems))
    for method, sparsity in sorted(systems, key=lambda each: (order.index(each[0]), each[1])):
        errors = _together(systems[method, sparsity], speakers, "utterance_errors")
        interval = bootstrap_interval(errors, words, groups=grouped)
        line = [
            method,
            f"{sparsity:.0%}" if sparsity else "none",
            percentage(errors.sum() / words.sum()),
            percentage_interval(interval),
        ]
        if method == "dense":
            lines.append([*line, "", "", ""])
            continue
        against = paired_comparison(plain, errors, words, groups=grouped)
        low, high = against.low, against.high
        lines.append(
            [
                *line,
                f"{100 * against.difference:+.1f}",
                f"[{100 * low:+.1f}, {100 * high:+.1f}]",
                f"{against.probability_better:.2f}",
            ]
        )
    return markdown_table(HEADERS, lines)


def _together(rows: Rows, speakers: list[str], key: str) -> np.ndarray[Any, np.dtype[Any]]:
    return np.concatenate([np.array(rows[speaker][key]) for speaker in speakers])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="written by `fpspeech compare --out`")
    print(joined_table(read_rows(parser.parse_args().folders)))


if __name__ == "__main__":
    main()
