import csv
import io

import pytest

from fpspeech.evaluation import (
    Interval,
    csv_table,
    markdown_table,
    percentage,
    percentage_interval,
)


def test_percentages() -> None:
    assert percentage(0.1234) == "12.3 %"
    assert percentage(0.1234, 2) == "12.34 %"
    assert percentage(1.5) == "150.0 %"
    assert percentage(0.012, signed=True) == "+1.2 %"
    assert percentage(-0.012, signed=True) == "-1.2 %"
    assert percentage(-0.00001, signed=True) == "0.0 %"
    assert percentage(float("nan")) == "–"


def test_percentage_intervals() -> None:
    assert percentage_interval(Interval(0.11, 0.135)) == "[11.0, 13.5] %"
    assert percentage_interval(Interval(-0.02, 0.01), signed=True) == "[-2.0, +1.0] %"
    assert percentage_interval(Interval(float("nan"), 0.1)) == "–"


def test_markdown() -> None:
    assert markdown_table(["speaker", "WER"], [("a|b", "12.3 %"), ("two\nlines", None)]) == (
        "| speaker | WER |\n| --- | --- |\n| a\\|b | 12.3 % |\n| two lines | – |\n"
    )


def test_csv_reads_back() -> None:
    rows = [('a, "b"', 0.1 + 0.2, 3), ("c\nd", None, -1)]
    read = list(csv.reader(io.StringIO(csv_table(["name", "wer", "n"], rows))))
    assert read == [
        ["name", "wer", "n"],
        ['a, "b"', repr(0.1 + 0.2), "3"],
        ["c\nd", "", "-1"],
    ]


@pytest.mark.parametrize("table", [markdown_table, csv_table])
def test_a_row_of_another_width_is_an_error(table) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="row 2 has 1 cells, expected 2"):
        table(["a", "b"], [(1, 2), (3,)])
