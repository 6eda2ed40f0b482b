"""The work that a mask file is: its masks grouped by image, and its records with better masks at the end.

Everything that can be known to be wrong is found by `plan_job`, before the first image is refined.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phoenix_d2.data.images import read_image_size
from phoenix_d2.data.mask_json import (
    PathLike,
    Record,
    check_annotations,
    check_results,
    image_file_name,
    is_results,
    load_annotations,
    read_json,
)
from phoenix_d2.structures import RefinementStatus

_MAX_LISTED = 5
_REASONS = {
    RefinementStatus.KEPT_EMPTY: "empty",
    RefinementStatus.KEPT_SMALL: "too small",
    RefinementStatus.KEPT_VANISHED: "erased by the refiner",
    RefinementStatus.KEPT_REJECTED: "rejected by the gate",
}


@dataclass(frozen=True)
class ImageTask:
    """An image and those of its records that are to be refined.

    Attributes:
        image_id: as in the file.
        path: of the image.
        size: (height, width) in pixels.
        places: of the records in the file's list.
        records: at least one.
    """

    image_id: Any
    path: Path
    size: tuple[int, int]
    places: tuple[int, ...]
    records: tuple[Record, ...]

    @property
    def num_masks(self) -> int:
        """Masks to refine."""
        return len(self.records)


@dataclass(frozen=True)
class ImageOutcome:
    """What became of an `ImageTask`; plain values, as it is written to a journal.

    Attributes:
        image_id: the task's.
        changes: new values by key for each record of the task; None for a record that stays as it was.
        statuses: values of `RefinementStatus`, one a record; none when the image could not be read.
        error: why the image could not be read.
        seconds: spent on the image.
        predicted_gains: of the gate, as in `RefinementResult`, one a record, None for NaN; none without statuses.
        evidence: as in `RefinementResult`, a row a record, None for NaN, for a gate that decides at the end of the job
            (`phoenix_d2.offline.decide`); none where there is nothing left to decide.
    """

    image_id: Any
    changes: Sequence[Record | None]
    statuses: Sequence[int]
    error: str | None
    seconds: float
    predicted_gains: Sequence[float | None] = ()
    evidence: Sequence[Sequence[float | None]] = ()


@dataclass(frozen=True)
class RefinementJob:
    """A mask file and the work on it.

    Attributes:
        data: the parsed file.
        tasks: one for each image with masks to refine, in the order of their first records.
        hashes: SHA-256 of the files that it was planned from, "input" and "annotations" (None without one).
    """

    data: Any
    tasks: tuple[ImageTask, ...]
    hashes: Mapping[str, str | None]

    @property
    def records(self) -> list[Record]:
        """The file's records that hold masks."""
        records: list[Record] = self.data if is_results(self.data) else self.data["annotations"]
        return records

    def finished(self, outcomes: Mapping[Any, ImageOutcome]) -> Any:
        """The file's content with the changes of all tasks; whatever they do not name is as it was.

        Args:
            outcomes: by image id, one for every task.
        """
        records = list(self.records)
        for task in self.tasks:
            for place, change in zip(task.places, outcomes[task.image_id].changes, strict=True):
                records[place] = {**records[place], **(change or {})}
        return records if is_results(self.data) else {**self.data, "annotations": records}

    def progress(self, outcomes: Mapping[Any, ImageOutcome]) -> str:
        """A line for people, at the end of a shard."""
        return (
            f"{len(outcomes)} of {len(self.tasks)} images are finished. Once all shards are, the same command with "
            "--resume in place of --shard writes the output."
        )

    def summary(self, outcomes: Mapping[Any, ImageOutcome]) -> str:
        """A few lines for people: what was refined, what was kept and why, and the time it took."""
        done = [outcomes[task.image_id] for task in self.tasks]
        unread = [outcome for outcome in done if outcome.error is not None]
        statuses = [status for outcome in done for status in outcome.statuses]
        kept = {reason: statuses.count(status) for status, reason in _REASONS.items()}
        kept["image could not be read"] = sum(len(outcome.changes) for outcome in unread)
        kept["crowd"] = sum(map(_is_crowd, self.records))
        reasons = ", ".join(f"{count} {reason}" for reason, count in kept.items() if count)

        refined = statuses.count(RefinementStatus.REFINED)
        text = f"{len(self.records)} masks in {len(done)} images: {refined} refined, {sum(kept.values())} kept"
        lines = [text + (f" ({reasons})" if reasons else "")]
        if unread:
            lines.append(
                f"{len(unread)} image(s) could not be read:{_listed(str(outcome.error) for outcome in unread)}"
            )
        if refined:
            seconds = sum(outcome.seconds for outcome in done if outcome.error is None)
            num_read = len(done) - len(unread)
            lines.append(f"{seconds / num_read:.2f} s an image, {1000 * seconds / len(statuses):.0f} ms a mask")
        return "\n".join(lines)


def plan_job(
    input_file: PathLike, *, image_folder: str | Path, annotation_file: PathLike | None = None
) -> RefinementJob:
    """Read and check a mask file, and find the images that its masks lie in.

    Crowds are no single object: they have no task.

    Args:
        input_file: a results or annotation file.
        image_folder: what an image's "file_name" is relative to, or where it has none, as in LVIS, the last two parts
            of its "coco_url".
        annotation_file: lists the images of a results file.

    Raises:
        OSError: a file cannot be opened.
        ValueError: a file is malformed, or images are missing or of another size; the message names file, id and
            remedy.
    """
    data = read_json(input_file)
    if not is_results(data):
        if annotation_file is not None:
            raise ValueError(f"{input_file} is an annotation file, which lists its images itself: omit --annotations.")
        check_annotations(data, source=input_file)
        image_list = data
    elif annotation_file is None:
        raise ValueError(
            f"{input_file} is a results file, which does not name its images: pass the annotation file that does, "
            "as --annotations."
        )
    else:
        image_list = load_annotations(annotation_file)
        check_results(data, source=input_file, annotations=image_list)
    hashes = {
        "input": _sha256(input_file),
        "annotations": None if annotation_file is None else _sha256(annotation_file),
    }
    job = RefinementJob(data, (), hashes)
    job = replace(job, tasks=_group(job.records, image_list["images"], Path(image_folder)))
    _check_images(job.tasks, image_folder)
    return job


def share(tasks: Sequence[ImageTask], rank: int, count: int) -> list[ImageTask]:
    """The tasks of one of `count` workers or machines, about as many masks as the others have, in the given order."""
    by_masks = sorted(range(len(tasks)), key=lambda index: -len(tasks[index].places))
    return [tasks[index] for index in sorted(by_masks[rank::count])]


def _group(records: Sequence[Record], images: Iterable[Record], folder: Path) -> tuple[ImageTask, ...]:
    by_image: dict[Any, list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        if not _is_crowd(record):
            by_image[record["image_id"]].append(place)
    image_of = {image["id"]: image for image in images}
    return tuple(
        ImageTask(
            image_id,
            folder / image_file_name(image_of[image_id]),
            (image_of[image_id]["height"], image_of[image_id]["width"]),
            tuple(places),
            tuple(records[place] for place in places),
        )
        for image_id, places in by_image.items()
    )


def _is_crowd(record: Record) -> bool:
    return bool(record.get("iscrowd", 0))


def _check_images(tasks: Iterable[ImageTask], folder: str | Path) -> None:
    problems = [problem for task in tasks if (problem := _image_problem(task))]
    if problems:
        raise ValueError(
            f"{len(problems)} image(s) cannot be used:{_listed(problems)}\n"
            f"Check that {folder} is the folder that the file names are relative to, with the images that the masks "
            "were made on."
        )


def _image_problem(task: ImageTask) -> str | None:
    where = f"{task.path} (image id {task.image_id})"
    try:
        size = read_image_size(task.path)
    except FileNotFoundError:
        return f"{where} is missing"
    except ValueError as error:
        return f"image id {task.image_id}: {error}"
    if size != task.size:
        return f"{where} is {size[0]} x {size[1]} (height x width), in the JSON {task.size[0]} x {task.size[1]}"
    return None


def _sha256(path: PathLike) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _listed(items: Iterable[str]) -> str:
    """The first few, a line each."""
    lines = list(items)
    rest = [f"and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
    return "".join(f"\n  {line}" for line in lines[:_MAX_LISTED] + rest)
