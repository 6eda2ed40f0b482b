"""Finished images on disk, so that a killed run can go on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from phoenix_d2 import __version__
from phoenix_d2.baselines.base import CropRefiner
from phoenix_d2.data.mask_json import PathLike, Record, read_json, write_json_atomically
from phoenix_d2.offline.job import ImageOutcome
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.sam.checkpoint import refiner_metadata, trained_state_dict
from phoenix_d2.sam.hashing import hash_tensors


class Journal:
    """A folder beside the output: what the run depends on, and a file of finished images for each worker and start.

    Args:
        output: the file that the run will write; the folder is named after it, with `.partial` at the end.
    """

    def __init__(self, output: str | Path) -> None:
        output = Path(output)
        self.folder = output.with_name(output.name + ".partial")
        self._fingerprint_file = self.folder / "job.json"

    def begin(self, fingerprint: Record, *, resume: bool) -> None:
        """Make the folder, or check that it is a run's that can go on.

        Args:
            fingerprint: all that the output depends on, in plain values.
            resume: go on with what is there, if anything is.

        Raises:
            OSError: the folder cannot be written.
            ValueError: it holds finished images, and `resume` is off or they are of another run.
        """
        fingerprint = json.loads(json.dumps(fingerprint))
        if num_finished := len(self.outcomes()):
            self._check_continues(fingerprint, num_finished, resume)
        write_json_atomically(self._fingerprint_file, fingerprint)

    def _check_continues(self, fingerprint: Record, num_finished: int, resume: bool) -> None:
        if not resume:
            raise ValueError(
                f"{self.folder} holds {num_finished} images that an earlier run finished: go on with --resume, or "
                "remove the folder to start over."
            )
        before = read_json(self._fingerprint_file)
        changed = [key for key in fingerprint if before.get(key) != fingerprint[key]]
        if changed:
            raise ValueError(
                f"{self.folder} belongs to a run with other {', '.join(changed)}: repeat its command, or remove the "
                "folder to start over."
            )

    def outcomes(self) -> dict[Any, ImageOutcome]:
        """All finished images by id."""
        files = sorted(self.folder.glob("*.jsonl"))
        return {outcome.image_id: outcome for file in files for outcome in _read(file)}

    def next_file(self) -> int:
        """Number of the first file that no worker has opened yet."""
        return 1 + max((int(path.stem) for path in self.folder.glob("*.jsonl")), default=-1)

    def file(self, number: int) -> JournalFile:
        """A new file for a worker; no two may take the same number."""
        return JournalFile(self.folder / f"{number}.jsonl")

    def remove(self) -> None:
        """Delete the folder, once the output is written."""
        shutil.rmtree(self.folder)


class JournalFile:
    """Append finished images, one a line, to a file of its own: a context manager.

    Args:
        path: of the file, which must not be there yet.
    """

    def __init__(self, path: Path) -> None:
        # never appended to: the last line of a killed run may lack its end
        self._file = path.open("x", encoding="utf-8")

    def __enter__(self) -> JournalFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def append(self, outcome: ImageOutcome) -> None:
        """Write an outcome, safe from the end of this process when the call returns."""
        self._file.write(json.dumps(asdict(outcome)) + "\n")
        self._file.flush()


def fingerprint_of(
    refiner: PhoenixRefiner | CropRefiner, *, input_file: PathLike, annotation_file: PathLike | None, update_boxes: bool
) -> Record:
    """All that a run's output depends on but the images, by names that `Journal.begin` tells users."""
    return {
        "input": _sha256(Path(input_file).read_bytes()),
        "annotations": None if annotation_file is None else _sha256(Path(annotation_file).read_bytes()),
        "update_boxes": update_boxes,
        **refiner_fingerprint(refiner),
    }


def refiner_fingerprint(refiner: PhoenixRefiner | CropRefiner) -> Record:
    """All that a refiner's masks depend on but what it is given, in plain values."""
    identity = {"refiner": type(refiner).__name__, "version of phoenix_d2": __version__}
    if isinstance(refiner, CropRefiner):
        return {**identity, "parameters": asdict(refiner)}
    weights = hash_tensors(trained_state_dict(refiner.refiner))
    return {**identity, "weights": weights, **refiner_metadata(refiner.refiner)}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> Iterator[ImageOutcome]:
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        yield ImageOutcome(**json.loads(line))
