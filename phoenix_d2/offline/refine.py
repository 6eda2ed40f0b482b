"""Refine the masks of images, one image after the other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray

from phoenix_d2.baselines.base import Refiner
from phoenix_d2.data.images import read_image
from phoenix_d2.data.mask_json import Record, decode_segmentation, encode_mask
from phoenix_d2.offline.job import ImageOutcome, ImageTask
from phoenix_d2.offline.journal import JournalFile
from phoenix_d2.structures import RefinementStatus


def refine_images(
    refiner: Refiner, tasks: Iterable[ImageTask], journal: JournalFile, *, update_boxes: bool = False
) -> Iterator[ImageOutcome]:
    """Refine image after image; each outcome is in the journal when it comes."""
    for task in tasks:
        outcome = refine_image(refiner, task, update_boxes=update_boxes)
        journal.append(outcome)
        yield outcome


def refine_image(refiner: Refiner, task: ImageTask, *, update_boxes: bool = False) -> ImageOutcome:
    """Refine all masks of an image together, so that a network encodes it once.

    Args:
        refiner: to refine with.
        task: the image and its records.
        update_boxes: let "bbox" and "area" of a record follow its mask, where it has them.

    Returns:
        The new "segmentation" of each refined mask, compressed RLE. An image that cannot be read leaves its masks as
        they were, which the outcome's `error` tells.
    """
    start = time.perf_counter()
    try:
        image = read_image(task.path)
    except (OSError, ValueError) as error:
        seconds = time.perf_counter() - start
        return ImageOutcome(task.image_id, [None] * len(task.records), [], str(error), seconds)
    masks = np.stack([decode_segmentation(record["segmentation"], *task.size) for record in task.records])
    result = refiner.refine(image, masks)
    changes = [
        _changes(record, np.asarray(mask), update_boxes) if status == RefinementStatus.REFINED else None
        for record, mask, status in zip(task.records, result.masks, result.status.tolist(), strict=True)
    ]
    return ImageOutcome(task.image_id, changes, result.status.tolist(), None, time.perf_counter() - start)


def _changes(record: Record, mask: NDArray[np.bool_], update_boxes: bool) -> Record:
    segmentation = encode_mask(mask)
    new = {"segmentation": segmentation}
    if update_boxes:
        follow = {"bbox": mask_util.toBbox(segmentation).tolist(), "area": int(mask_util.area(segmentation))}
        new |= {key: value for key, value in follow.items() if key in record}
    return new
