"""What measuring tools leave behind: a folder of Markdown, JSON and pictures."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tabulate import tabulate


@contextmanager
def staged_folder(folder: str | Path) -> Iterator[Path]:
    """A place to write files that come to lie in `folder` only when all are written.

    Each then replaces the one of its name, if there is one; when the block raises, nothing in `folder` changes.

    Args:
        folder: made if need be.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # inside the folder, since only a rename within one file system is atomic
    with TemporaryDirectory(dir=folder, prefix=".") as staging:
        yield Path(staging)
        for path in sorted(Path(staging).iterdir()):
            os.replace(path, folder / path.name)


def without_nan(value: Any) -> Any:
    """The same plain values, None for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def markdown_table(rows: Sequence[Mapping[str, Any]], *, float_format: str = ".1f") -> str:
    """A Markdown table of records, a column a key; "-" for NaN and what a record lacks."""
    names = dict.fromkeys(name for row in rows for name in row)
    table: str = tabulate(
        [[_cell(row.get(name), float_format) for name in names] for row in rows],
        headers=[name.replace("_", " ") for name in names],
        tablefmt="github",
        colalign=("left", *["right"] * (len(names) - 1)) if rows else None,
        disable_numparse=True,
    )
    return table


def _cell(value: Any, float_format: str) -> str:
    value = without_nan(value)
    if value is None:
        return "-"
    return format(value, float_format) if isinstance(value, float) else str(value)
