"""The work that a folder of PNG masks is, and the folder that it becomes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phoenix_d2.data.mask_folders import MaskPair, load_annotations_of, write_mask
from phoenix_d2.data.mask_json import decode_segmentation
from phoenix_d2.files import publish_folder
from phoenix_d2.offline.job import ImageOutcome, ImageTask, RefinementJob


def plan_mask_job(pairs: Sequence[MaskPair]) -> RefinementJob:
    """Read and check the masks; each is a task of its own.

    Args:
        pairs: of images and masks, see `phoenix_d2.data.mask_folders.pair_masks`.

    Raises:
        ValueError: a file is damaged, or a mask is none or not of its image's size.
    """
    content = load_annotations_of(pairs)
    tasks = tuple(
        ImageTask(pair.name, pair.image, (image["height"], image["width"]), (place,), (record,))
        for place, (pair, image, record) in enumerate(
            zip(pairs, content["images"], content["annotations"], strict=True)
        )
    )
    digest = hashlib.sha256()
    for pair, record in zip(pairs, content["annotations"], strict=True):
        digest.update(f"{pair.name} {record['segmentation']}\n".encode())
    return RefinementJob(content, tasks, {"masks": digest.hexdigest()})


def write_mask_folder(
    folder: Path, staging: Path, job: RefinementJob, outcomes: Mapping[Any, ImageOutcome], pairs: Sequence[MaskPair]
) -> None:
    """Write the masks of a finished job under the names that they came under; `folder` appears whole or not at all.

    Args:
        folder: must not be there, unless empty.
        staging: a folder on the same file system to make it in.
        job: planned from `pairs`.
        outcomes: by image id, one for every task.
        pairs: of images and masks.
    """
    for task, pair, record in zip(job.tasks, pairs, job.finished(outcomes)["annotations"], strict=True):
        write_mask(staging / pair.mask.name, decode_segmentation(record["segmentation"], *task.size))
    publish_folder(staging, folder)
