"""How well binary masks match their targets: IoU, Dice, the boundary F measure, mean boundary accuracy.

The measures of dichotomous segmentation (DIS) and of skin lesions (ISIC). All work on the crop around the masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from phoenix_d2.data.mask_folders import MaskPair, pair_masks, read_mask
from phoenix_d2.ops.windows import box_window

Mask: TypeAlias = NDArray[np.bool_]

_NUM_RADII = 5


@dataclass(frozen=True)
class MaskScore:
    """How one mask matches its target.

    Attributes:
        intersection: pixels in both.
        union: pixels in either.
        iou: in [0, 1]; 1 where both are empty.
        dice: in [0, 1]; F1 of pixels; 1 where both are empty.
        boundary_f: in [0, 1], see `boundary_f`.
        boundary_accuracy: in [0, 1], see `mean_boundary_accuracy`; NaN where the target has no boundary.
    """

    intersection: int
    union: int
    iou: float
    dice: float
    boundary_f: float
    boundary_accuracy: float


def score_mask(mask: Mask, target: Mask) -> MaskScore:
    """Compare an (H, W) bool mask with its (H, W) bool target.

    Raises:
        ValueError: they are not of one size.
    """
    if mask.shape != target.shape:
        raise ValueError(f"A mask and its target have one size, got {mask.shape} and {target.shape}: resize the mask.")
    intersection, union = int(np.count_nonzero(mask & target)), int(np.count_nonzero(mask | target))
    return MaskScore(
        intersection,
        union,
        iou=intersection / union if union else 1.0,
        dice=2 * intersection / (union + intersection) if union else 1.0,
        boundary_f=boundary_f(mask, target),
        boundary_accuracy=mean_boundary_accuracy(mask, target),
    )


def summarise(scores: Sequence[MaskScore]) -> dict[str, float]:
    """Percentages over the masks of a data set; NaN where there is nothing to measure.

    Returns:
        "IoU", the mean over masks; "IoU pooled", the sum of intersections over the sum of unions, as SegRefiner's
        script for DIS has it; "boundary F", "mBA" and "Dice", means over masks.
    """
    union = sum(score.union for score in scores)
    accuracies = [score.boundary_accuracy for score in scores if not math.isnan(score.boundary_accuracy)]
    shares = {
        "IoU": [score.iou for score in scores],
        "IoU pooled": [sum(score.intersection for score in scores) / union] if union else [],
        "boundary F": [score.boundary_f for score in scores],
        "mBA": accuracies,
        "Dice": [score.dice for score in scores],
    }
    return {name: 100 * float(np.mean(values)) if values else math.nan for name, values in shares.items()}


def score_folder(targets: str | Path, folder: str | Path, *, suffix: str = "", bar: str = "") -> list[MaskScore]:
    """Compare a folder of PNG masks with the folder of their targets, in the order of names, with a progress bar.

    Args:
        targets: folder of PNG masks.
        folder: of PNG masks of the same names.
        suffix: of the targets' names, see `phoenix_d2.data.mask_folders.pair_masks`.
        bar: what the progress bar says.

    Raises:
        ValueError: files do not pair up, are no masks, or differ in size.
    """
    pairs = pair_masks(folder, targets, suffix=suffix)
    # threads, since decoding and OpenCV release the interpreter
    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(_score_pair, pairs), bar, len(pairs), unit="mask", disable=None))


def average(sets: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over data sets."""
    return {name: float(np.mean([figures[name] for figures in sets])) for name in sets[0]}


def boundary_f(mask: Mask, target: Mask, *, tolerance: float = 0.008) -> float:
    """F measure of boundary pixels (Perazzi et al., "A Benchmark Dataset", CVPR 2016).

    A boundary pixel counts as right within a distance of the other mask's boundary. Its pixels are those that differ
    from their neighbour to the right, below, or both, as in the DAVIS benchmark.

    Args:
        mask: (H, W) bool.
        target: (H, W) bool.
        tolerance: that distance as a share of the image diagonal, rounded up to whole pixels.

    Returns:
        In [0, 1]; 1 where neither has a boundary, 0 where only one has.
    """
    radius = math.ceil(tolerance * math.hypot(*mask.shape))
    window = box_window(mask | target, margin=1)
    boundary, target_boundary = _boundary(mask[window]), _boundary(target[window])
    if not (boundary.any() and target_boundary.any()):
        return float(boundary.any() == target_boundary.any())
    precision = float((_distance(target_boundary)[boundary] <= radius).mean())
    recall = float((_distance(boundary)[target_boundary] <= radius).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def mean_boundary_accuracy(mask: Mask, target: Mask) -> float:
    """Mean boundary accuracy (Cheng et al., "CascadePSP", CVPR 2020).

    The share of right pixels among those within r of the target's boundary, averaged over five r from 1 to
    (height + width) / 300 pixels, as its authors' code rounds them.

    Args:
        mask: (H, W) bool.
        target: (H, W) bool.

    Returns:
        In [0, 1]; NaN where the target is empty or fills the image.
    """
    steps = [(sum(target.shape) / 300 - 1) / _NUM_RADII * i for i in range(_NUM_RADII)]
    radii = [1 + int(step) for step in steps]
    window = box_window(target, margin=max(radii) + 1)
    cropped = np.ascontiguousarray(target[window]).view(np.uint8)
    right = mask[window] == target[window]
    accuracy = {}
    for radius in set(radii):
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        region = cv2.morphologyEx(cropped, cv2.MORPH_GRADIENT, kernel) > 0
        accuracy[radius] = float(right[region].mean()) if region.any() else math.nan
    return float(np.mean([accuracy[radius] for radius in radii]))


def _score_pair(pair: MaskPair) -> MaskScore:
    mask = read_mask(pair.image)
    return score_mask(mask, read_mask(pair.mask, (mask.shape[0], mask.shape[1])))


def _boundary(mask: Mask) -> Mask:
    # what lies beyond the image is like its border
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    boundary: Mask = (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])
    return boundary


def _distance(mask: Mask) -> NDArray[np.float32]:
    """Euclidean distance of each pixel from the nearest one of the mask."""
    distance = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance, np.float32)
