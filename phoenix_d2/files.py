"""Files and folders that are there whole or not at all, and messages that name many of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_MAX_LISTED = 5


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to in the block, at whose end the file takes the place of `path`.

    When the block raises, `path` is as it was. A kill leaves the unfinished file too, see `publish_folder`.

    Args:
        path: of the file; parent folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # beside `path`, since only a rename within one file system is atomic
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish_folder(staging: Path, folder: Path) -> None:
    """Give a folder of files, written by means of `atomic_path`, its name; what kills left unfinished is removed.

    Args:
        staging: the folder, on the file system of its new place.
        folder: its new place, which is not there or empty; parent folders are created.
    """
    for path in staging.rglob(".*.tmp"):
        path.unlink()
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.replace(staging, folder)


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


def listed(items: Iterable[str]) -> str:
    """The first few items, each on a line of its own, and how many more there are."""
    lines = list(items)
    rest = [f"and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
    return "".join(f"\n  {line}" for line in lines[:_MAX_LISTED] + rest)
