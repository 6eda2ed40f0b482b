"""Figures as tables, for people and for files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate


def without_nan(value: Any) -> Any:
    """The same plain values, None for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def format_table(rows: Sequence[Mapping[str, Any]], *, markdown: bool = True, float_format: str = ".1f") -> str:
    """A table of records, a column a key; "-" for NaN and what a record lacks."""
    names = dict.fromkeys(name for row in rows for name in row)
    table: str = tabulate(
        [[_cell(row.get(name), float_format) for name in names] for row in rows],
        headers=[name.replace("_", " ") for name in names],
        tablefmt="github" if markdown else "simple",
        colalign=("left", *["right"] * (len(names) - 1)) if rows else None,
        disable_numparse=True,
    )
    return table


def scores_table(scores: Mapping[str, Mapping[str, float]], *, markdown: bool = False) -> str:
    """A table of figures: one row a name, one column a metric."""
    rows = [{"": name, **figures} for name, figures in scores.items()]
    return format_table(rows, markdown=markdown, float_format=".2f")


def _cell(value: Any, float_format: str) -> str:
    value = without_nan(value)
    if value is None:
        return "-"
    return format(value, float_format) if isinstance(value, float | np.floating) else str(value)
