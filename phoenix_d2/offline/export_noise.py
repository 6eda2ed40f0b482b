"""Noisy masks on disk, in the layout that SegRefiner trains on, so that other refiners learn from the same noise.

SegRefiner's `HRCollectionDataset` reads an index, `collection_hr.json`: by the name of a data set, a list of its masks,
each with the files of image, target, coarse mask, and coarse mask of the target with its holes filled, relative to the
folder of the index, and the image's height and width. Masks are 8-bit PNG, 0 and 255.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from phoenix_d2.data.images import read_image
from phoenix_d2.data.mask_folders import write_mask
from phoenix_d2.data.mask_json import Record, annotation_area, decode_segmentation, read_json
from phoenix_d2.offline.job import ImageOutcome, ImageTask
from phoenix_d2.offline.perturb import perturb_image_masks
from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.perturbation import NoiseSampler
from phoenix_d2.refiner import MaskRefiner
from phoenix_d2.structures import PerturbationOutcome

INDEX = "collection_hr.json"
_FOLDERS = {"maskname": "gt", "coarsename": "coarse", "expandname": "coarse_expand"}


def trainable_tasks(tasks: Sequence[ImageTask], *, min_area: float) -> list[ImageTask]:
    """The tasks with the records alone that SegRefiner can train on; images that are left with none fall away.

    It takes objects of more than `min_area` pixels, and searches each for a patch with object and background.
    """
    kept = []
    for task in tasks:
        height, width = task.size
        chosen = [i for i, record in enumerate(task.records) if min_area < annotation_area(record) < height * width]
        if chosen:
            places, records = tuple(task.places[i] for i in chosen), tuple(task.records[i] for i in chosen)
            kept.append(replace(task, places=places, records=records))
    return kept


def export_image(
    refiner: MaskRefiner,
    task: ImageTask,
    *,
    root: Path,
    name: str,
    sampler: NoiseSampler,
    dense_prompt: str,
    seed: int = 0,
) -> ImageOutcome:
    """Write target, noisy mask, and noisy mask of the target without holes, of each record of an image.

    An image's noise depends on the seed, its id and its masks alone.

    Args:
        refiner: whose decoder is attacked.
        task: of an annotation file.
        root: folder of the index.
        name: of the data set, and of its folder in `root`.
        sampler: draws the noise.
        dense_prompt: under attack, see `phoenix_d2.attack`.
        seed: of the noise.

    Returns:
        As changes the entries of the index, each with "iou" of noisy mask and target; as statuses values of
        `PerturbationOutcome`.

    Raises:
        OSError: a file cannot be opened.
        ValueError: the image cannot be read, or there is no such dense prompt.
    """
    start = time.perf_counter()
    image = torch.from_numpy(read_image(task.path)).permute(2, 0, 1)
    targets = np.stack([decode_segmentation(record["segmentation"], *task.size) for record in task.records])
    both = torch.from_numpy(np.concatenate([targets, np.stack([_without_holes(mask) for mask in targets])]))
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {task.image_id}".encode()))
    noisy, noise = perturb_image_masks(
        refiner, image, both, sampler=sampler, dense_prompt=dense_prompt, generator=generator
    )
    count, noisy = len(targets), noisy.cpu()
    ious = mask_iou(noisy[:count], both[:count]).tolist()
    masks = {"maskname": targets, "coarsename": noisy[:count].numpy(), "expandname": noisy[count:].numpy()}
    entries: list[Record] = []
    for i, record in enumerate(task.records):
        files = {key: f"{name}/{folder}/{record['id']}.png" for key, folder in _FOLDERS.items()}
        for key, file in files.items():
            write_mask(root / file, masks[key][i])
        image_file = Path(os.path.relpath(task.path, root)).as_posix()
        height, width = task.size
        entries.append({"filename": image_file, **files, "height": height, "width": width, "iou": ious[i]})
    return ImageOutcome(task.image_id, entries, noise.outcome[:count].tolist(), None, time.perf_counter() - start)


def merged_index(root: Path, name: str, entries: Sequence[Record]) -> Record:
    """The index in `root`, if there is one, with the entries of a data set added or replaced.

    Raises:
        ValueError: what is there is no index.
    """
    index = read_json(root / INDEX) if (root / INDEX).is_file() else {}
    if not isinstance(index, Mapping):
        raise ValueError(f"{root / INDEX} is no index of data sets, a dict of lists: write to another folder.")
    return {**index, name: [{key: value for key, value in entry.items() if key != "iou"} for entry in entries]}


def summary(outcomes: Sequence[ImageOutcome]) -> str:
    """Two lines for people: how many masks, how wrong they are, and how that came about."""
    ious = np.array([entry["iou"] for outcome in outcomes for entry in outcome.changes if entry is not None])
    statuses = [status for outcome in outcomes for status in outcome.statuses]
    low, median, high = np.quantile(ious, (0.1, 0.5, 0.9))
    shares = {outcome: statuses.count(outcome) / len(statuses) for outcome in PerturbationOutcome}
    return (
        f"{len(ious)} masks, IoU with the target {ious.mean():.3f} on average (10 % below {low:.3f}, half below "
        f"{median:.3f}, 90 % below {high:.3f})\n"
        + ", ".join(f"{100 * share:.0f} % {outcome.name.lower()}" for outcome, share in shares.items() if share)
    )


def _without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled: Any = cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, cv2.FILLED)
    return np.asarray(filled, bool)
