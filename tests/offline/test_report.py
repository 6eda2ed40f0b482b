"""Folders that are written whole, and tables."""

from __future__ import annotations

import math

import pytest

from phoenix_d2.offline.report import markdown_table, staged_folder, without_nan


def test_files_appear_when_all_are_written(tmp_path):
    folder = tmp_path / "deep" / "report"
    with staged_folder(folder) as staging:
        (staging / "a.txt").write_text("new")
        assert not (folder / "a.txt").exists()
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
    with pytest.raises(RuntimeError), staged_folder(folder) as staging:
        (staging / "a.txt").write_text("half")
        raise RuntimeError
    assert [path.read_text() for path in folder.iterdir()] == ["new"]
    with staged_folder(folder) as staging:
        (staging / "a.txt").write_text("newer")
    assert (folder / "a.txt").read_text() == "newer"


def test_json_has_no_nan():
    assert without_nan({"a": [1, math.nan, (2.5, "x")], "b": None}) == {"a": [1, None, [2.5, "x"]], "b": None}


def test_a_table_has_a_column_for_every_key():
    lines = markdown_table([{"of_a": 1.25, "b": "x"}, {"b": "y", "c": math.nan}]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["of a", "b", "c"] and cells[2:] == [["1.2", "x", "-"], ["-", "y", "-"]]
