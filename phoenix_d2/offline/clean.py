"""Annotations with better masks: the same records in the same form, and a verdict on each."""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util
from tqdm import tqdm

from phoenix_d2.data.images import read_image
from phoenix_d2.data.mask_json import (
    PathLike,
    Record,
    Segmentation,
    decode_segmentation,
    run_lengths,
    segmentation_to_rle,
    write_json_atomically,
)
from phoenix_d2.data.polygons import mask_to_polygons
from phoenix_d2.files import staged_folder
from phoenix_d2.offline import html_report
from phoenix_d2.offline.job import ImageOutcome, ImageTask, RefinementJob, plan_job
from phoenix_d2.offline.refine import box_and_area
from phoenix_d2.structures import RefinementStatus
from phoenix_d2.visualization import Image, compare_masks

_BINS = 20
# two rows of three stand beside one another on a laptop
_PICTURE_SIDE = 200


class Verdict(str, Enum):
    """What became of an annotation; all but a refined one is in the output as it was."""

    REFINED = "refined"
    UNCHANGED = "unchanged"
    """The refiner found the very same mask."""
    REJECTED = "rejected"
    """The gate expects the refined mask to be no better."""
    VANISHED = "vanished"
    """The refiner would erase it."""
    SMALL = "small"
    EMPTY = "empty"
    UNREADABLE = "unreadable"
    """Its image could not be read."""
    INVALID = "invalid"
    """It has a mistake, or its image is missing or of another size."""
    CROWD = "crowd"


_VERDICTS = {
    RefinementStatus.REFINED: Verdict.REFINED,
    RefinementStatus.KEPT_EMPTY: Verdict.EMPTY,
    RefinementStatus.KEPT_SMALL: Verdict.SMALL,
    RefinementStatus.KEPT_VANISHED: Verdict.VANISHED,
    RefinementStatus.KEPT_REJECTED: Verdict.REJECTED,
}


@dataclass(frozen=True)
class CleanedAnnotation:
    """An annotation of the output.

    Attributes:
        record: as it is in the output.
        verdict: what became of it.
        iou: IoU of its mask in the output with that in the input.
        predicted_gain: of the gate for the refined mask, of a rejected one too; None where no gate was asked.
    """

    record: Record
    verdict: Verdict
    iou: float = 1.0
    predicted_gain: float | None = None

    def line(self) -> Record:
        """The verdict in plain values, with the ids of the annotation, its image and its category."""
        return {
            "annotation_id": self.record["id"],
            # which an invalid one may lack
            "image_id": self.record.get("image_id"),
            "category_id": self.record.get("category_id"),
            "verdict": self.verdict.value,
            "iou": round(self.iou, 6),
            "predicted_gain": self.predicted_gain,
        }


def plan_cleaning(
    input_file: PathLike, *, image_folder: str | Path, skip_invalid: bool = False, max_images: int | None = None
) -> RefinementJob:
    """`plan_job` of an annotation file; arguments and errors as there.

    Raises:
        ValueError: it is a results file.
    """
    with open(input_file, "rb") as file:
        if file.read(64).lstrip().startswith(b"["):
            raise ValueError(
                f"{input_file} is a list, as results files are; expected an annotation file, a dict with 'images', "
                "'annotations' and 'categories'. Refine results with tools/refine_json.py."
            )
    return plan_job(input_file, image_folder=image_folder, skip_invalid=skip_invalid, max_images=max_images)


def clean_annotations(
    job: RefinementJob, outcomes: Mapping[Any, ImageOutcome], *, tolerance: float
) -> Iterator[CleanedAnnotation]:
    """The annotations of a job in the file's order, one at a time.

    Where a mask changed, so do "segmentation", which keeps its form (polygons, plain or compressed RLE), and of
    "bbox" and "area" what a record has; everything else is as it was.

    Args:
        job: of an annotation file.
        outcomes: by image id, one for every task, of a run with `update_boxes`.
        tolerance: of polygons in pixels, see `mask_to_polygons`.
    """
    # a task has its records in the order of the file
    cleaned = {task.image_id: _clean_image(task, outcomes[task.image_id], tolerance=tolerance) for task in job.tasks}
    for place, record in enumerate(job.records):
        if place in job.mistakes:
            yield CleanedAnnotation(record, Verdict.INVALID)
        elif record.get("iscrowd", 0):
            yield CleanedAnnotation(record, Verdict.CROWD)
        else:
            yield next(cleaned[record["image_id"]])


def _clean_image(task: ImageTask, outcome: ImageOutcome, *, tolerance: float) -> Iterator[CleanedAnnotation]:
    if outcome.error is not None:
        yield from (CleanedAnnotation(record, Verdict.UNREADABLE) for record in task.records)
        return
    rows = zip(task.records, outcome.changes, outcome.statuses, outcome.predicted_gains, strict=True)
    for record, change, status, gain in rows:
        verdict = _VERDICTS[RefinementStatus(status)]
        if change is None:
            yield CleanedAnnotation(record, verdict, predicted_gain=gain)
            continue
        before = segmentation_to_rle(record["segmentation"], *task.size)
        if _iou(before, change["segmentation"]) == 1:
            yield CleanedAnnotation(record, Verdict.UNCHANGED, predicted_gain=gain)
            continue
        segmentation = in_form_of(record["segmentation"], change["segmentation"], tolerance=tolerance)
        after = segmentation_to_rle(segmentation, *task.size)
        new = {**record, "segmentation": segmentation, **box_and_area(record, after)}
        yield CleanedAnnotation(new, verdict, _iou(before, after), gain)


class ChangeReport:
    """What a cleaned file's reader should see: how many of what, how far masks moved, and those that moved most.

    Its size does not grow with the file.

    Args:
        num_pictures: of the annotations whose masks changed most.
    """

    def __init__(self, *, num_pictures: int = 40) -> None:
        self._num_pictures = num_pictures
        # {category id: {verdict: count}}
        self._verdicts: dict[Any, Counter[Verdict]] = defaultdict(Counter)
        self._sum_of_ious = 0.0
        # of refined masks by bin
        self._ious: Counter[int] = Counter()
        # a heap whose first item changed least; the place decides among equals
        self._largest: list[tuple[float, int, Record, CleanedAnnotation]] = []

    def add(self, place: int, before: Record, cleaned: CleanedAnnotation) -> None:
        """Count an annotation.

        Args:
            place: of the annotation in the file.
            before: its record in the input.
            cleaned: what became of it.
        """
        category = before.get("category_id")
        # of an invalid one, it may be anything
        is_id = isinstance(category, str | int | float)
        self._verdicts[category if is_id else "unknown"][cleaned.verdict] += 1
        if cleaned.verdict != Verdict.REFINED:
            return
        self._sum_of_ious += cleaned.iou
        self._ious[min(int(cleaned.iou * _BINS), _BINS - 1)] += 1
        heapq.heappush(self._largest, (-cleaned.iou, -place, before, cleaned))
        if len(self._largest) > self._num_pictures:
            heapq.heappop(self._largest)

    def summary(self) -> str:
        """A line for people: how many of what, and how far masks moved."""
        total = self._total()
        counts = ", ".join(f"{total[verdict]} {verdict.value}" for verdict in Verdict if total[verdict])
        refined = total[Verdict.REFINED]
        moved = f"; mean IoU of refined masks with the original {self._sum_of_ious / refined:.3f}" if refined else ""
        note = "; unchanged are masks that came back as they were" if total[Verdict.UNCHANGED] else ""
        return f"verdicts: {counts or 'none'}{note}{moved}"

    def html(self, job: RefinementJob, *, title: str, summary: str) -> str:
        """The report as one HTML file; reads the images of the largest changes.

        Args:
            job: that was cleaned.
            title: plain text, as is `summary`, which comes first.
            summary: what to say of all.
        """
        sections = {
            "": html_report.paragraph(summary),
            "Verdicts by category": self._verdict_table(job.data["categories"]),
            "IoU of refined masks with the original": html_report.histogram(
                {f"{i / _BINS:.2f} to {(i + 1) / _BINS:.2f}": self._ious[i] for i in range(_BINS)}
            ),
            f"Largest changes ({len(self._largest)})": html_report.figures(self._pictures(job)),
        }
        return html_report.page(title, sections)

    def _total(self) -> Counter[Verdict]:
        return sum(self._verdicts.values(), Counter())

    def _verdict_table(self, categories: Sequence[Record]) -> str:
        names, total = _names(categories), self._total()
        verdicts = [verdict for verdict in Verdict if total[verdict]]
        ordered = sorted(self._verdicts.items(), key=lambda item: (-item[1][Verdict.REFINED], -item[1].total()))
        rows = [("all", total), *((names.get(category_id, category_id), counts) for category_id, counts in ordered)]
        return html_report.table(
            ["category", *(verdict.value for verdict in verdicts)],
            [[name, *(counts[verdict] for verdict in verdicts)] for name, counts in rows],
        )

    def _pictures(self, job: RefinementJob) -> Iterator[tuple[Image, str]]:
        names, task_of = _names(job.data["categories"]), {task.image_id: task for task in job.tasks}
        for *_, before, cleaned in sorted(self._largest, key=lambda item: item[:2], reverse=True):
            task = task_of[before["image_id"]]
            segmentations = {"before": before["segmentation"], "after": cleaned.record["segmentation"]}
            masks = {name: decode_segmentation(each, *task.size) for name, each in segmentations.items()}
            gain = "" if cleaned.predicted_gain is None else f", predicted gain {cleaned.predicted_gain:.3f}"
            caption = (
                f"annotation {before['id']}, {names.get(before['category_id'], before['category_id'])}, "
                f"{task.path.name}\nIoU {cleaned.iou:.3f}{gain}"
            )
            yield compare_masks(read_image(task.path), masks, side=_PICTURE_SIDE), caption


def write_cleaned(job: RefinementJob, outcomes: Mapping[Any, ImageOutcome], output: Path, *, tolerance: float) -> str:
    """Write the cleaned file, the verdicts and the report; all three or, when something goes wrong, none.

    Args:
        job: of an annotation file.
        outcomes: by image id, one for every task, of a run with `update_boxes`.
        output: the cleaned file; the others lie beside it, see `verdict_file` and `report_file`.
        tolerance: of polygons in pixels, see `mask_to_polygons`.

    Returns:
        A few lines for people, which the report begins with too.

    Raises:
        OSError: a file cannot be written.
    """
    report = ChangeReport()
    records = []
    with staged_folder(output.parent) as staging:
        with (staging / verdict_file(output).name).open("w", encoding="utf-8") as lines:
            cleaned_annotations = clean_annotations(job, outcomes, tolerance=tolerance)
            pairs = zip(job.records, cleaned_annotations, strict=True)
            for place, (before, cleaned) in enumerate(tqdm(pairs, "writing", len(job.records), disable=None)):
                records.append(cleaned.record)
                report.add(place, before, cleaned)
                lines.write(json.dumps(cleaned.line()) + "\n")
        summary = f"{job.summary(outcomes)}\n{report.summary()}"
        html = report.html(job, title=f"Cleaned annotations: {output.name}", summary=summary)
        (staging / report_file(output).name).write_text(html, encoding="utf-8")
        write_json_atomically(staging / output.name, {**job.data, "annotations": records})
    return summary


def verdict_file(output: Path) -> Path:
    """Where the verdicts on a cleaned file lie: JSON lines, one an annotation in the file's order."""
    return output.with_name(f"{output.stem}.verdicts.jsonl")


def report_file(output: Path) -> Path:
    """Where the report on a cleaned file lies."""
    return output.with_name(f"{output.stem}.report.html")


def in_form_of(segmentation: Segmentation, rle: Record, *, tolerance: float) -> Segmentation:
    """A mask in the COCO form of a segmentation.

    Args:
        segmentation: polygons, or RLE with a list of counts or a compressed string.
        rle: the mask, compressed RLE, not empty.
        tolerance: of polygons in pixels, see `mask_to_polygons`.
    """
    if not isinstance(segmentation, Mapping):
        return mask_to_polygons(decode_segmentation(rle, *rle["size"]), tolerance=tolerance)
    counts = rle["counts"]
    is_plain = isinstance(segmentation["counts"], list)
    return {**segmentation, "counts": run_lengths(counts).tolist() if is_plain else counts}


def _iou(rle: Record, other: Record) -> float:
    return float(mask_util.iou([rle], [other], [0])[0, 0])


def _names(categories: Sequence[Record]) -> dict[Any, Any]:
    return {category["id"]: category.get("name", category["id"]) for category in categories}
