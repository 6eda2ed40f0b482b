"""Tables, and what JSON does not have."""

from __future__ import annotations

import math

from phoenix_d2.tables import format_table, scores_table, without_nan


def test_json_has_no_nan():
    assert without_nan({"a": [1, math.nan, (2.5, "x")], "b": None}) == {"a": [1, None, [2.5, "x"]], "b": None}


def test_a_table_has_a_column_for_every_key():
    lines = format_table([{"of_a": 1.25, "b": "x"}, {"b": "y", "c": math.nan}]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["of a", "b", "c"] and cells[2:] == [["1.2", "x", "-"], ["-", "y", "-"]]


def test_scores_table():
    scores = {"coarse": {"AP": 1.234, "AP50": math.nan}, "refined": {"AP": 100.0, "IoU": 5.0}}
    plain = scores_table(scores).splitlines()
    assert plain[0].split() == ["AP", "AP50", "IoU"]
    assert [line.split() for line in plain[2:]] == [["coarse", "1.23", "-", "-"], ["refined", "100.00", "-", "5.00"]]
    markdown = scores_table(scores, markdown=True).splitlines()
    assert [cell.strip() for cell in markdown[3].split("|")[1:-1]] == ["refined", "100.00", "-", "5.00"]
