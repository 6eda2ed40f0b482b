"""Finished images on disk, so that a killed run can go on, and several machines can work on one job."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from phoenix_d2 import __version__
from phoenix_d2.baselines.base import CropRefiner
from phoenix_d2.data.mask_json import Record
from phoenix_d2.offline.job import ImageOutcome, RefinementJob
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.sam.checkpoint import refiner_metadata, trained_state_dict
from phoenix_d2.sam.hashing import hash_tensors


class Journal:
    """A folder beside the output, with a file of finished images for each worker and start.

    Every file begins with what its images depend on. Nothing in the folder is ever changed, and files are made under
    names that no other shard uses: machines that share a file system need neither locks nor one another.

    Args:
        output: the file that the run will write; the folder is named after it, with `.partial` at the end.
        shard: (k, n) for the k-th of n parts of the job, counted from 1.
    """

    def __init__(self, output: str | Path, *, shard: tuple[int, int] = (1, 1)) -> None:
        output = Path(output)
        self.folder = output.with_name(output.name + ".partial")
        self.shard = shard
        self._stem = "{}of{}-".format(*shard)
        self._fingerprint: Record = {}

    def begin(self, fingerprint: Record, *, resume: bool) -> dict[Any, ImageOutcome]:
        """Make the folder, or check that it is a run's that can go on.

        Args:
            fingerprint: all that the output depends on, in plain values.
            resume: go on with what is there, if anything is. Images that other shards finished are welcome anyway,
                but to a run of the whole job.

        Returns:
            What is finished already, as `outcomes`; images that could not be read are not.

        Raises:
            OSError: the folder cannot be written.
            ValueError: it holds images of another run, or finished images of this one and `resume` is off.
        """
        self._fingerprint = json.loads(json.dumps(fingerprint))
        by_file = self._outcomes_by_file()
        own = [by_file[path] for path in by_file if self.shard[1] == 1 or path.name.startswith(self._stem)]
        if (num_own := len(_read(own))) and not resume:
            raise ValueError(
                f"{self.folder} holds {num_own} images that an earlier run finished: go on with --resume, or "
                "remove the folder to start over."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        return _read(by_file.values())

    def outcomes(self) -> dict[Any, ImageOutcome]:
        """All finished images by id, whichever shard finished them, and those that none could read.

        Raises:
            ValueError: some are of a run with another fingerprint than `begin` was given.
        """
        return _merged(self._outcomes_by_file().values())

    def _outcomes_by_file(self) -> dict[Path, dict[Any, ImageOutcome]]:
        by_file = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            fingerprint, *outcomes = _complete_lines(path) or [{}]
            if outcomes:
                self._check_same(fingerprint)
            by_file[path] = {outcome["image_id"]: ImageOutcome(**outcome) for outcome in outcomes}
        return by_file

    def _check_same(self, fingerprint: Record) -> None:
        expected = self._fingerprint
        changed = [key for key in fingerprint | expected if fingerprint.get(key) != expected.get(key)]
        if changed:
            raise ValueError(
                f"{self.folder} belongs to a run with other {', '.join(changed)}: repeat its command, or remove the "
                "folder to start over."
            )

    def next_file(self) -> int:
        """Number of this shard's first file that no worker has opened yet."""
        files = self.folder.glob(f"{self._stem}*.jsonl")
        return 1 + max((int(path.stem.removeprefix(self._stem)) for path in files), default=-1)

    def file(self, number: int) -> JournalFile:
        """A new file for a worker; no two workers of a shard may take the same number."""
        return JournalFile(self.folder / f"{self._stem}{number}.jsonl", self._fingerprint)

    def remove(self) -> None:
        """Delete the folder, once the output is written."""
        shutil.rmtree(self.folder)


class JournalFile:
    """Append finished images, one a line, to a file of its own: a context manager.

    Args:
        path: of the file, which must not be there yet.
        fingerprint: its first line.
    """

    def __init__(self, path: Path, fingerprint: Record) -> None:
        # never appended to: the last line of a killed run may lack its end
        self._file = path.open("x", encoding="utf-8")
        self._write(fingerprint)

    def __enter__(self) -> JournalFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def append(self, outcome: ImageOutcome) -> None:
        """Write an outcome, safe from the end of this process when the call returns."""
        self._write(asdict(outcome))

    def _write(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def fingerprint_of(refiner: PhoenixRefiner | CropRefiner, job: RefinementJob, *, update_boxes: bool) -> Record:
    """All that a run's output depends on but the images, by names that `Journal.begin` tells users."""
    return {**job.hashes, "update_boxes": update_boxes, **refiner_fingerprint(refiner)}


def refiner_fingerprint(refiner: PhoenixRefiner | CropRefiner) -> Record:
    """All that a refiner's masks depend on but what it is given, in plain values."""
    identity = {"refiner": type(refiner).__name__, "version of phoenix_d2": __version__}
    if isinstance(refiner, CropRefiner):
        return {**identity, "parameters": asdict(refiner)}
    weights = hash_tensors(trained_state_dict(refiner.refiner))
    # only where it is on: what was kept without it is still good
    rounding = {} if refiner.refiner.cached_encoder is None else {"embedding cache": "half precision"}
    return {**identity, "weights": weights, **refiner_metadata(refiner.refiner), **rounding}


def _merged(parts: Collection[Mapping[Any, ImageOutcome]]) -> dict[Any, ImageOutcome]:
    """All outcomes by image id; an image that any run could read counts as read."""
    outcomes = {image_id: outcome for part in parts for image_id, outcome in part.items()}
    return outcomes | _read(parts)


def _read(parts: Collection[Mapping[Any, ImageOutcome]]) -> dict[Any, ImageOutcome]:
    """The outcomes of images that could be read, by image id."""
    return {id_: outcome for part in parts for id_, outcome in part.items() if outcome.error is None}


def _complete_lines(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
