"""Boundary bands and Boundary IoU (Cheng et al., "Boundary IoU", CVPR 2021)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def band_width(height: int, width: int, *, dilation_ratio: float = 0.02) -> int:
    """Depth in pixels of the boundary band in an image: `dilation_ratio` of its diagonal, at least 1."""
    return max(1, round(dilation_ratio * float(np.hypot(height, width))))


def boundary_band(mask: NDArray[np.bool_], *, dilation_ratio: float = 0.02) -> NDArray[np.bool_]:
    """Pixels of a mask that lie within the band width of its outline.

    Distance is the chessboard's (erosion with a 3 x 3 square), and what lies beyond the image is
    outside the mask, so that a mask cut by the image border has a band there too.

    Args:
        mask: (H, W) bool in the image frame.
        dilation_ratio: band width as a share of the image diagonal.

    Returns:
        (H, W) bool; all of the mask where it is at most two band widths thin.
    """
    height, width = mask.shape
    window = _tight_window(mask)
    band = np.zeros_like(mask)
    band[window] = _band(mask[window], band_width(height, width, dilation_ratio=dilation_ratio))
    return band


def boundary_iou(mask: NDArray[np.bool_], other: NDArray[np.bool_], *, dilation_ratio: float = 0.02) -> float:
    """Intersection over union of two masks' boundary bands.

    Args:
        mask: (H, W) bool in the image frame.
        other: (H, W) bool in the image frame.
        dilation_ratio: band width as a share of the image diagonal.

    Returns:
        In [0, 1]; 1 where both masks are empty.

    Raises:
        ValueError: the masks are not of one size.
    """
    if mask.shape != other.shape:
        raise ValueError(f"Masks of one image have one size, got {mask.shape} and {other.shape}. Resize one of them.")
    height, width = mask.shape
    depth = band_width(height, width, dilation_ratio=dilation_ratio)
    window = _tight_window(mask | other)
    band, other_band = _band(mask[window], depth), _band(other[window], depth)
    union = np.count_nonzero(band | other_band)
    return np.count_nonzero(band & other_band) / union if union else 1.0


def _band(mask: NDArray[np.bool_], depth: int) -> NDArray[np.bool_]:
    """Boundary band of a mask cropped so that nothing of it lies outside the crop."""
    side = 2 * depth + 1
    if min(mask.shape) < side:
        return mask
    # one wide box erodes as `depth` 3 x 3 squares in turn do
    kernel = np.ones((side, side), np.uint8)
    core = cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    band: NDArray[np.bool_] = mask & (core == 0)
    return band


def _tight_window(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Slices of the smallest window that holds all of a mask; empty slices for an empty mask."""
    return _extent(np.any(mask, axis=1)), _extent(np.any(mask, axis=0))


def _extent(occupied: NDArray[np.bool_]) -> slice:
    positions = np.flatnonzero(occupied)
    return slice(int(positions[0]), int(positions[-1]) + 1) if positions.size else slice(0, 0)
