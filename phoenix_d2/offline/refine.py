"""Refine the masks of an image."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray

from phoenix_d2.baselines.base import Refiner
from phoenix_d2.data.images import read_image
from phoenix_d2.data.mask_json import Record, decode_segmentation, encode_mask
from phoenix_d2.data.visual_cues import cue_arrays, group_by_cues
from phoenix_d2.evidence import MaskSource
from phoenix_d2.offline.decide import decides_late
from phoenix_d2.offline.job import ImageOutcome, ImageTask
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.structures import RefinementResult, RefinementStatus
from phoenix_d2.tables import without_nan


def refine_image(
    refiner: Refiner, task: ImageTask, *, source: MaskSource | None = None, update_boxes: bool = False
) -> ImageOutcome:
    """Refine all masks of an image together, so that a network encodes it once (once for each kind of visual cues).

    Args:
        refiner: to refine with.
        task: the image and its records.
        source: what the gate knows of where the masks come from, see `survey`.
        update_boxes: let "bbox" and "area" of a record follow its mask, where it has them.

    Returns:
        The new "segmentation" of each refined mask, compressed RLE; all of them, with the evidence, where the gate is
        to decide at the end of the job (`phoenix_d2.offline.decide`). An image that cannot be read leaves its masks as
        they were, which the outcome's `error` tells.

    Raises:
        ValueError: the image is no longer of the masks' size, or the refiner refuses it; the message names it.
    """
    start = time.perf_counter()
    try:
        image = read_image(task.path)
    except (OSError, ValueError) as error:
        seconds = time.perf_counter() - start
        return ImageOutcome(task.image_id, [None] * len(task.records), [], str(error), seconds)
    num_records = len(task.records)
    changes: list[Record | None] = [None] * num_records
    statuses, gains = [0] * num_records, [0.0] * num_records
    evidence: list[list[float]] = [[]] * num_records if decides_late(refiner) else []
    for rows in group_by_cues(task.records):
        records = [task.records[row] for row in rows]
        try:
            result = _refine_alike(refiner, image, records, source)
        except ValueError as error:
            raise ValueError(f"{task.path} (image id {task.image_id}): {error}") from error
        for i, row in enumerate(rows):
            statuses[row], gains[row] = int(result.status[i]), float(result.predicted_gain[i])
            if evidence:
                evidence[row] = result.evidence[i].tolist()
            if statuses[row] == RefinementStatus.REFINED:
                changes[row] = _changes(records[i], np.asarray(result.masks[i]), update_boxes)
    seconds = time.perf_counter() - start
    return ImageOutcome(task.image_id, changes, statuses, None, seconds, without_nan(gains), without_nan(evidence))


def _refine_alike(
    refiner: Refiner, image: NDArray[np.uint8], records: Sequence[Record], source: MaskSource | None
) -> RefinementResult:
    """Refine the masks of records that have the same kinds of cues; other refiners know neither cues nor sources."""
    masks = np.stack([decode_segmentation(record["segmentation"], *image.shape[:2]) for record in records])
    if isinstance(refiner, PhoenixRefiner):
        options: dict[str, Any] = {"gate": "off"} if decides_late(refiner) else {}
        return refiner.refine(image, masks, source=source, **cue_arrays(records), **options)
    return refiner.refine(image, masks)


def box_and_area(record: Record, rle: Record) -> Record:
    """Of "bbox" and "area", what a record has, as a compressed RLE's mask has them, in pixels."""
    values = {"bbox": mask_util.toBbox(rle).tolist(), "area": int(mask_util.area(rle))}
    return {key: value for key, value in values.items() if key in record}


def _changes(record: Record, mask: NDArray[np.bool_], update_boxes: bool) -> Record:
    segmentation = encode_mask(mask)
    return {"segmentation": segmentation, **(box_and_area(record, segmentation) if update_boxes else {})}
