"""Coarse masks made of right ones, as a results file."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from phoenix_d2.data.mask_json import Record, decode_segmentation, encode_mask, image_sizes
from phoenix_d2.perturbation import get_degradation


def degrade_annotations(annotations: Record, *, kind: str, strength: float, seed: int = 0) -> list[Record]:
    """Degrade every mask of an annotation file that is no crowd.

    A mask's noise depends on the seed and its annotation's id alone.

    Args:
        annotations: content of a COCO or LVIS annotation file, checked.
        kind: key of `phoenix_d2.perturbation.DEGRADATIONS`.
        strength: from 0 to 1.
        seed: of the noise.

    Returns:
        Records of a results file with score 1 and `gt_id`, the id of the annotation that the mask comes from.

    Raises:
        ValueError: the kind is unknown, or the strength out of range.
    """
    degrade = get_degradation(kind, strength=strength)
    sizes = image_sizes(annotations)
    results = []
    for annotation in annotations["annotations"]:
        if annotation.get("iscrowd", 0):
            continue
        mask = decode_segmentation(annotation["segmentation"], *sizes[annotation["image_id"]])
        rng = np.random.default_rng((seed, zlib.crc32(str(annotation["id"]).encode())))
        results.append(coarse_record(annotation, degrade(mask, rng)))
    return results


def coarse_record(annotation: Record, mask: NDArray[np.bool_]) -> Record:
    """An (H, W) bool mask as a result of score 1 that names, as `gt_id`, the annotation that it was made of."""
    record = {key: annotation[key] for key in ("image_id", "category_id")}
    return record | {"segmentation": encode_mask(mask), "score": 1.0, "gt_id": annotation["id"]}
