"""The work that a mask file is: its masks grouped by image, and its records with better masks at the end.

Everything that can be known to be wrong is found by `plan_job`, before the first image is refined.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phoenix_d2.data.images import check_images, image_problem
from phoenix_d2.data.mask_json import (
    PathLike,
    Record,
    annotation_mistakes,
    draw_images,
    image_file_name,
    image_sizes,
    is_results,
    load_annotations,
    only_images,
    read_json,
    refuse,
    result_mistakes,
)
from phoenix_d2.files import listed
from phoenix_d2.sam.hashing import hash_file
from phoenix_d2.structures import RefinementStatus

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
        hashes: SHA-256 of the files that it was planned from, "input" and "annotations" (None without one), and how
            many "images drawn" where not all are.
        mistakes: what is wrong with records that were left out for it, by their places in the file's list.
    """

    data: Any
    tasks: tuple[ImageTask, ...]
    hashes: Mapping[str, str | None]
    mistakes: Mapping[int, str] = field(default_factory=dict)

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
        """A few lines for people, at the end of a shard."""
        unread = _unread(outcomes.values())
        text = (
            f"{len(outcomes) - len(unread)} of {len(self.tasks)} images are finished. Once all shards are, the same "
            "command with --resume in place of --shard writes the output."
        )
        return "\n".join([text, *_report_unread(unread, "repair them, as --resume tries them again")])

    def summary(self, outcomes: Mapping[Any, ImageOutcome]) -> str:
        """A few lines for people: what was refined, what was kept and why, and the time it took."""
        done = [outcomes[task.image_id] for task in self.tasks]
        unread = _unread(done)
        statuses = [status for outcome in done for status in outcome.statuses]
        kept = {reason: statuses.count(status) for status, reason in _REASONS.items()}
        kept["of unreadable images"] = sum(len(outcome.changes) for outcome in unread)
        kept["invalid"] = len(self.mistakes)
        kept["crowd"] = sum(
            _is_crowd(record) for place, record in enumerate(self.records) if place not in self.mistakes
        )
        reasons = ", ".join(f"{count} {reason}" for reason, count in kept.items() if count)

        refined = statuses.count(RefinementStatus.REFINED)
        text = f"{len(self.records)} masks in {len(done)} images: {refined} refined, {sum(kept.values())} kept"
        lines = [text + (f" ({reasons})" if reasons else "")]
        if self.mistakes:
            lines.append(f"{len(self.mistakes)} invalid record(s) stay as they were:{listed(self.mistakes.values())}")
        lines += _report_unread(unread)
        if kept["rejected by the gate"] > refined:
            lines.append(
                f"the gate expects {refined or 'no'} mask(s) to become better: --gate off takes all that the refiner "
                "makes, calibrate_gate.py makes a gate for masks like these"
            )
        if not self.records:
            lines.append("warning: the input holds no masks")
        if statuses:
            seconds = sum(outcome.seconds for outcome in done if outcome.error is None)
            num_read = len(done) - len(unread)
            lines.append(f"{seconds / num_read:.2f} s an image, {1000 * seconds / len(statuses):.0f} ms a mask")
        return "\n".join(lines)


def plan_job(
    input_file: PathLike,
    *,
    image_folder: str | Path,
    annotation_file: PathLike | None = None,
    skip_invalid: bool = False,
    max_images: int | None = None,
) -> RefinementJob:
    """Read and check a mask file, and find the images that its masks lie in.

    Crowds are no single object: they have no task.

    Args:
        input_file: a results or annotation file.
        image_folder: what an image's "file_name" is relative to, or where it has none, as in LVIS, the last two parts
            of its "coco_url".
        annotation_file: lists the images of a results file.
        skip_invalid: leave out records with a mistake, and those whose image is missing or of another size. Ids that
            are missing or not unique, and mistakes in the list of images or in `annotation_file`, stay errors.
        max_images: make it a job on the valid records of so many of their images, drawn at random; all when None.

    Raises:
        OSError: a file cannot be opened.
        ValueError: a file is malformed; or, unless they are to be skipped, records are, or images are missing or of
            another size. The message names file, ids and remedy.
    """
    data = read_json(input_file)
    if not is_results(data):
        if annotation_file is not None:
            raise ValueError(f"{input_file} is an annotation file, which lists its images itself: omit --annotations.")
        mistakes = annotation_mistakes(data, source=input_file)
        image_list = data
    elif annotation_file is None:
        raise ValueError(
            f"{input_file} is a results file, which does not name its images: pass the annotation file that does, "
            "as --annotations."
        )
    else:
        image_list = load_annotations(annotation_file)
        mistakes = result_mistakes(data, source=input_file, annotations=image_list)
    if not skip_invalid:
        refuse(mistakes, "refine_json.py and clean_annotations.py leave such records as they are with --skip-invalid.")
    hashes = {
        "input": hash_file(Path(input_file)),
        "annotations": None if annotation_file is None else hash_file(Path(annotation_file)),
    }
    if max_images is not None:
        data, mistakes = _draw(data, image_list, mistakes, max_images), {}
        hashes["images drawn"] = str(max_images)
    records = data if is_results(data) else data["annotations"]
    tasks = _group(records, image_list, Path(image_folder), mistakes)
    if not skip_invalid:
        check_images(((task.image_id, task.path, task.size) for task in tasks), image_folder)
        return RefinementJob(data, tasks, hashes)
    for task in tasks:
        if problem := image_problem(task.image_id, task.path, task.size):
            mistakes |= dict.fromkeys(task.places, problem)
    usable = tuple(task for task in tasks if task.places[0] not in mistakes)
    if tasks and not usable:
        check_images(((task.image_id, task.path, task.size) for task in tasks), image_folder)
    return RefinementJob(data, usable, hashes, mistakes)


def _draw(data: Any, image_list: Record, mistakes: Collection[int], max_images: int) -> Any:
    """The valid records of some images that have any, as a file of the kind that `data` is."""
    records = data if is_results(data) else data["annotations"]
    valid = [record for place, record in enumerate(records) if place not in mistakes]
    with_masks = {record["image_id"] for record in valid if not _is_crowd(record)}
    drawn = draw_images(only_images({**image_list, "annotations": valid}, with_masks), max_images)
    return drawn["annotations"] if is_results(data) else drawn


def share(tasks: Sequence[ImageTask], rank: int, count: int) -> list[ImageTask]:
    """The tasks of one of `count` workers or machines, about as many masks as the others have, in the given order."""
    by_masks = sorted(range(len(tasks)), key=lambda index: -len(tasks[index].places))
    return [tasks[index] for index in sorted(by_masks[rank::count])]


def _group(
    records: Sequence[Record], image_list: Record, folder: Path, mistakes: Collection[int]
) -> tuple[ImageTask, ...]:
    by_image: dict[Any, list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        if place not in mistakes and not _is_crowd(record):
            by_image[record["image_id"]].append(place)
    image_of, sizes = {image["id"]: image for image in image_list["images"]}, image_sizes(image_list)
    return tuple(
        ImageTask(
            image_id,
            folder / image_file_name(image_of[image_id]),
            sizes[image_id],
            tuple(places),
            tuple(records[place] for place in places),
        )
        for image_id, places in by_image.items()
    )


def _is_crowd(record: Record) -> bool:
    return bool(record.get("iscrowd", 0))


def _unread(outcomes: Iterable[ImageOutcome]) -> list[ImageOutcome]:
    return [outcome for outcome in outcomes if outcome.error is not None]


def _report_unread(unread: Sequence[ImageOutcome], remedy: str = "") -> list[str]:
    """What to say of images that could not be read, if there are any."""
    errors = listed(str(outcome.error) for outcome in unread)
    hint = f" ({remedy})" if remedy else ""
    return [f"{len(unread)} image(s) could not be read{hint}:{errors}"] if unread else []
