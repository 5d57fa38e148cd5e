"""Results as Markdown and CSV, and the way their numbers are written."""

import csv
import io
import math
from collections.abc import Sequence

from fpspeech.evaluation.bootstrap import Interval

Cell = str | int | float | None
Row = tuple[Cell, ...]

NOT_MEASURED = "–"


def percentage(fraction: float, decimals: int = 1, *, signed: bool = False) -> str:
    """Write a fraction as a percentage: 0.123 is "12.3 %", and with `signed` "+12.3 %".

    Nan, a rate without words, is written as a dash.
    """
    if math.isnan(fraction):
        return NOT_MEASURED
    return f"{_percent(fraction, decimals, signed)} %"


def percentage_interval(interval: Interval, decimals: int = 1, *, signed: bool = False) -> str:
    """Write an interval of fractions as percentages: "[11.0, 13.5] %"."""
    if math.isnan(interval.low) or math.isnan(interval.high):
        return NOT_MEASURED
    low, high = (_percent(end, decimals, signed) for end in (interval.low, interval.high))
    return f"[{low}, {high}] %"


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Render a GitHub Markdown table, ending in a newline.

    Numbers are written as Python writes them: format them first. None is a dash, `|` is escaped,
    and line breaks become spaces. Raises ValueError where a row and the headers differ in length.
    """
    _check_widths(headers, rows)
    lines: list[Sequence[Cell]] = [headers, ["---"] * len(headers), *rows]
    return "".join(f"| {' | '.join(_markdown_cell(cell) for cell in line)} |\n" for line in lines)


def csv_table(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Render comma-separated values (RFC 4180 quoting, newline endings), None as an empty field.

    Floats keep full precision. Raises ValueError where a row and the headers differ in length.
    """
    _check_widths(headers, rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([headers, *rows])
    return text.getvalue()


def _percent(fraction: float, decimals: int, signed: bool) -> str:
    value = round(100 * fraction, decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
    return f"{value:{'+' if signed and value else ''}.{decimals}f}"


def _markdown_cell(cell: Cell) -> str:
    text = NOT_MEASURED if cell is None else str(cell)
    return " ".join(text.split()).replace("|", r"\|")


def _check_widths(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    for number, row in enumerate(rows, start=1):
        if len(row) != len(headers):
            raise ValueError(
                f"row {number} has {len(row)} cells, expected {len(headers)}, one per header "
                f"of {list(headers)}: {list(row)}"
            )
