"""Several comparisons of the same recordings become one table."""

import json

import pytest

from recipes.joined_table import joined_table, read_rows


def folder(place, name, rows):
    path = place / name
    path.mkdir()
    keys = ("speaker", "method", "sparsity", "utterance_errors", "utterance_words")
    (path / "table.json").write_text(
        json.dumps([dict(zip(keys, row, strict=True)) for row in rows])
    )
    return path


def test_rates_are_errors_over_words_of_all_speakers_and_differences_are_paired(tmp_path):
    words = {"ann": [4, 6], "bob": [10]}
    first = folder(
        tmp_path,
        "first",
        [
            ("ann", "dense", 0.0, [2, 3], words["ann"]),
            ("bob", "dense", 0.0, [1], words["bob"]),
            ("ann", "magnitude", 0.5, [3, 4], words["ann"]),
            ("bob", "magnitude", 0.5, [3], words["bob"]),
        ],
    )
    second = folder(
        tmp_path,
        "second",
        [
            ("ann", "obs", 0.5, [1, 2], words["ann"]),
            ("bob", "obs", 0.5, [0], words["bob"]),
        ],
    )
    lines = joined_table(read_rows([first, second])).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [(row[0], row[1], row[2]) for row in cells] == [
        ("dense", "none", "30.0 %"),
        ("magnitude", "50%", "50.0 %"),
        ("obs", "50%", "15.0 %"),
    ]
    assert [row[4] for row in cells] == ["", "+20.0", "-15.0"]
    assert [row[6] for row in cells] == ["", "0.00", "1.00"]


def test_other_recordings_and_missing_speakers_do_not_join(tmp_path):
    dense = [("ann", "dense", 0.0, [1], [2]), ("bob", "dense", 0.0, [1], [2])]
    first = folder(tmp_path, "first", dense)
    other = folder(tmp_path, "other", [("ann", "obs", 0.5, [1], [3])])
    lacking = folder(tmp_path, "lacking", [("ann", "obs", 0.5, [1], [2])])
    with pytest.raises(ValueError, match="other recordings"):
        read_rows([first, other])
    with pytest.raises(ValueError, match="lacks bob"):
        read_rows([first, lacking])
