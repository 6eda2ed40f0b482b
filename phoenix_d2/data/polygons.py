"""Masks as COCO polygons.

Outlines run halfway between the centres of inside and outside pixels (marching squares at level 0.5), so that they
have no staircase and, before they are simplified, decode to the very mask that they were drawn from.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pycocotools.mask as mask_util
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

_MAX_HALVINGS = 3


def mask_to_polygons(mask: NDArray[np.bool_], *, tolerance: float = 0.5, min_iou: float = 0.99) -> list[list[float]]:
    """Outline a mask, one polygon a connected part.

    COCO has no holes: one is cut out by a bridge of no width to the outline around it, passed there and back, which
    every reader that fills by the even-odd rule, pycocotools among them, decodes to the hole. Parts and holes that
    are thinner than the tolerance vanish.

    Args:
        mask: (H, W) bool, not empty.
        tolerance: how far in pixels a simplified outline may lie from the exact one (Douglas-Peucker); 0 keeps all.
        min_iou: least IoU of what the polygons decode to with the mask. Where they miss it, the tolerance is halved
            up to three times, and in the end 0, which is exact.

    Returns:
        [[x0, y0, x1, y1, ...], ...] in pixels, each of at least 3 points, rounded to hundredths.
    """
    regions = list(_regions(mask))
    height, width = mask.shape
    target = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    for halvings in range(_MAX_HALVINGS + 1):
        polygons = _simplified(regions, tolerance / 2**halvings)
        if polygons:
            drawn = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
            if mask_util.iou([drawn], [target], [0])[0, 0] >= min_iou:
                return polygons
    return _simplified(regions, 0.0)


def _regions(mask: NDArray[np.bool_]) -> Iterator[list[NDArray[np.float32]]]:
    """Rings (n, 2) of (x, y) of each connected part, the outer one first, then its holes."""
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    padded = np.pad(mask[y : y + height, x : x + width], 1).astype(np.float32)
    generator = contour_generator(z=padded, name="serial", fill_type=FillType.OuterOffset)
    for points, offsets in zip(*generator.filled(0.5, np.inf), strict=True):
        # from indices of the padded crop, which name centres of pixels
        rings = (points + np.array([x - 0.5, y - 0.5])).astype(np.float32)
        # the last point of a ring repeats its first
        yield [ring[:-1] for ring in np.split(rings, offsets[1:-1])]


def _simplified(regions: list[list[NDArray[np.float32]]], tolerance: float) -> list[list[float]]:
    polygons = []
    for outer, *holes in regions:
        polygon = _simplify(outer, tolerance)
        if len(polygon) < 3:
            continue
        for hole in holes:
            ring = _simplify(hole, tolerance)
            if len(ring) >= 3:
                polygon = _with_hole(polygon, ring)
        polygons.append(polygon.astype(np.float64).round(2).ravel().tolist())
    return polygons


def _simplify(ring: NDArray[np.float32], tolerance: float) -> NDArray[np.float32]:
    return np.asarray(cv2.approxPolyDP(ring, tolerance, True)[:, 0])


def _with_hole(polygon: NDArray[np.float32], hole: NDArray[np.float32]) -> NDArray[np.float32]:
    """Walk the polygon to the point nearest to the hole's first, around the hole, and on."""
    nearest = int(np.linalg.norm(polygon - hole[0], axis=1).argmin())
    return np.concatenate([polygon[: nearest + 1], hole, hole[:1], polygon[nearest:]])
