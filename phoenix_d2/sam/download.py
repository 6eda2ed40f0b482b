"""Fetching official checkpoints: whole or not at all, and from where it broke off."""

from __future__ import annotations

import os
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from phoenix_d2.sam.official import check_file, checkpoint_folder, get_checkpoint

_CHUNK = 1 << 20
# seconds without a byte
_TIMEOUT = 60

_RANGE_NOT_SATISFIABLE, _PARTIAL_CONTENT = 416, 206


def download(encoder: str, folder: Path | None = None) -> Path:
    """Download the official checkpoint of an encoder, unless it is there, and check its hash.

    What is left of a download that broke off lies beside it as `.partial`, and is gone on with.

    Args:
        encoder: key of `CHECKPOINTS`.
        folder: is made if there is none; `checkpoint_folder()` when None.

    Returns:
        Path of the file.

    Raises:
        OSError: the file cannot be fetched or written.
        ValueError: the encoder has no official checkpoint, or the file is not the published one.
    """
    checkpoint = get_checkpoint(encoder)
    folder = checkpoint_folder() if folder is None else folder
    path = folder / checkpoint.file_name
    if path.is_file():
        check_file(path, checkpoint)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        _fetch(checkpoint.url, partial)
    except (OSError, HTTPException) as error:
        raise OSError(
            f"{checkpoint.url} could not be fetched ({error}). Run the command again to go on, or put the file into "
            f"{folder} yourself."
        ) from error
    try:
        check_file(partial, checkpoint)
    except ValueError:
        # going on with it would never mend it
        partial.unlink()
        raise
    os.replace(partial, path)
    return path


def _fetch(url: str, partial: Path) -> None:
    """Fetch what is missing of a file."""
    start = partial.stat().st_size if partial.is_file() else 0
    headers = {"User-Agent": "phoenix_d2"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        if start and error.code == _RANGE_NOT_SATISFIABLE:
            return  # nothing is missing
        raise
    with response:
        if response.status != _PARTIAL_CONTENT:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = tqdm(desc=partial.stem, initial=start, total=total, unit="B", unit_scale=True, disable=None)
        with open(partial, "ab" if start else "wb") as file, bar as progress:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    size = partial.stat().st_size
    if total is not None and size < total:
        raise ConnectionError(f"the connection broke off after {size} of {total} bytes")
