"""Realistic coarse masks: evaluation refines them, users test with them, training sees them among worse ones.

Each keeps at least one pixel: a degradation that would leave nothing returns the mask as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import cv2
import numpy as np
import torch
from torch import Tensor

from phoenix_d2.ops.windows import box_window
from phoenix_d2.perturbation import morphology
from phoenix_d2.perturbation.morphology import BoolMask

Degradation: TypeAlias = Callable[[BoolMask, float, np.random.Generator], BoolMask]


def mask_head(mask: BoolMask, *, size: int = 28) -> BoolMask:
    """What a detector's mask head of size x size loses: the mask squeezed through that grid and back.

    Args:
        mask: (h, w) bool.
        size: side of the grid that the object's box, grown by a twentieth a side, is resampled to.

    Returns:
        (h, w) bool.
    """
    if not mask.any():
        return np.array(mask)
    rows, columns = box_window(mask, margin=1, share=1 / 20)
    crop = mask[rows, columns].astype(np.float32)
    squeezed = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    degraded = np.zeros_like(mask)
    degraded[rows, columns] = cv2.resize(squeezed, crop.shape[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
    return degraded if degraded.any() else np.array(mask)


def coarsen_polygon(mask: BoolMask, *, tolerance: float) -> BoolMask:
    """What hasty annotation loses: every contour, holes too, as a polygon of few vertices (Douglas-Peucker).

    Args:
        mask: (h, w) bool.
        tolerance: largest distance between contour and polygon, as a share of the contour's perimeter.

    Returns:
        (h, w) bool.
    """
    contours = morphology.find_contours(mask.astype(np.uint8))
    polygons = [
        cv2.approxPolyDP(contour, tolerance * cv2.arcLength(contour, True), True).astype(np.int32)
        for contour in contours
    ]
    degraded = morphology.fill_contours(polygons, mask.shape).astype(bool)
    return degraded if degraded.any() else np.array(mask)


def _mask_head(mask: BoolMask, strength: float, rng: np.random.Generator) -> BoolMask:
    """A grid of 56 (strength 0) to 7 (strength 1); 28 and 14 lie a third and two thirds of the way."""
    return mask_head(mask, size=round(56 * 8.0**-strength))


def _polygon(mask: BoolMask, strength: float, rng: np.random.Generator) -> BoolMask:
    """A tolerance of 0.2 % to 2 % of the perimeter."""
    return coarsen_polygon(mask, tolerance=0.002 * 10.0**strength)


def _morphological(mask: BoolMask, strength: float, rng: np.random.Generator) -> BoolMask:
    return morphology.perturb_mask(mask, iou_threshold=iou_threshold(strength), rng=rng)


DEGRADATIONS: dict[str, Degradation] = {
    "mask_head": _mask_head,
    "polygon": _polygon,
    "morphological": _morphological,
}
"""By name: (mask (h, w) bool, strength from 0, mild, to 1, severe, rng) -> (h, w) bool."""


def degrade_masks(target_masks: Tensor, *, generator: torch.Generator) -> Tensor:
    """Noise for training: the mild mistakes of detectors and annotators, and now and then none at all.

    A refiner that never sees a good mask in training does not learn to leave one alone.

    Args:
        target_masks: (N, s, s) bool.
        generator: draws a seed a mask; the rest is drawn from that, on the host.

    Returns:
        (N, s, s) bool: each mask squeezed through a mask head's grid, coarsened to a polygon, both of random
        strength, or unchanged, one as often as the other.
    """
    kinds = ("mask_head", "polygon", None)
    seeds = torch.randint(0, 2**31, (len(target_masks),), generator=generator, device=generator.device).tolist()
    degraded = np.empty(target_masks.shape, dtype=bool)
    for i, (mask, seed) in enumerate(zip(target_masks.cpu().numpy(), seeds, strict=True)):
        rng = np.random.default_rng(seed)
        kind, strength = kinds[rng.integers(len(kinds))], rng.random()
        degraded[i] = mask if kind is None else DEGRADATIONS[kind](mask, strength, rng)
    return torch.from_numpy(degraded).to(target_masks.device)


def get_degradation(kind: str, *, strength: float) -> Callable[[BoolMask, np.random.Generator], BoolMask]:
    """The degradation of that name and strength: (mask (h, w) bool, rng) -> (h, w) bool.

    Raises:
        ValueError: there is none of that name, or the strength is out of range.
    """
    if kind not in DEGRADATIONS:
        raise ValueError(f"Unknown degradation {kind!r}: expected one of {', '.join(sorted(DEGRADATIONS))}.")
    _check_strength(strength)
    degrade = DEGRADATIONS[kind]
    return lambda mask, rng: degrade(mask, strength, rng)


def iou_threshold(strength: float) -> float:
    """The IoU that noise of a strength from 0 to 1 leads down to: 0.9 to 0.5.

    Raises:
        ValueError: the strength is out of range.
    """
    _check_strength(strength)
    return 0.9 - 0.4 * strength


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise ValueError(f"Strength {strength} of a degradation is out of range: expected 0 to 1.")
