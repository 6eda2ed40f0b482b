"""Boundary bands and Boundary IoU (Cheng et al., "Boundary IoU", CVPR 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


def band_width(height: int, width: int, *, dilation_ratio: float = 0.02) -> int:
    """Depth in pixels of the boundary band in an image: `dilation_ratio` of its diagonal, at least 1."""
    return max(1, round(dilation_ratio * float(np.hypot(height, width))))


def boundary_band(mask: NDArray[np.bool_], *, dilation_ratio: float = 0.02) -> NDArray[np.bool_]:
    """Pixels of a mask that lie within the band width of its outline; see `CroppedMask.band`.

    Args:
        mask: (H, W) bool in the image frame.
        dilation_ratio: band width as a share of the image diagonal.

    Returns:
        (H, W) bool; all of the mask where it is at most two band widths thin.
    """
    height, width = mask.shape
    crop = CroppedMask.of(mask).band(band_width(height, width, dilation_ratio=dilation_ratio))
    band = np.zeros_like(mask)
    band[crop.window] = crop.pixels
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
    return CroppedMask.of(mask).band(depth).iou(CroppedMask.of(other).band(depth))


@dataclass(frozen=True, eq=False)
class CroppedMask:
    """A mask as the content of its tight box: all work on it costs what the object is large, not the image.

    Attributes:
        pixels: (h, w) bool, in one piece of memory; (0, 0) for an empty mask.
        y: row of the image frame in which the box begins.
        x: column of the image frame in which the box begins.
    """

    pixels: NDArray[np.bool_]
    y: int = 0
    x: int = 0

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> CroppedMask:
        """The tight crop of an (H, W) bool mask."""
        rows, columns = _extent(np.any(mask, axis=1)), _extent(np.any(mask, axis=0))
        return cls(np.ascontiguousarray(mask[rows, columns]), rows.start, columns.start)

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the box in the image frame."""
        height, width = self.pixels.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)

    def band(self, depth: int) -> CroppedMask:
        """The pixels within `depth` of the outline, all of the mask where its box is at most twice as thin.

        Distance is the chessboard's (erosion with a 3 x 3 square), and what lies beyond the image is
        outside the mask, so that a mask cut by the image border has a band there too.
        """
        side = 2 * depth + 1
        if min(self.pixels.shape) < side:
            return self
        # one wide box erodes as `depth` 3 x 3 squares in turn do
        kernel = np.ones((side, side), np.uint8)
        core = cv2.erode(self.pixels.view(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        return CroppedMask(self.pixels & (core == 0), self.y, self.x)

    def iou(self, other: CroppedMask) -> float:
        """Intersection over union with a mask of the same image; 1 where both are empty."""
        rows, columns = map(_overlap, self.window, other.window)
        common = np.count_nonzero(self._part(rows, columns) & other._part(rows, columns))
        union = np.count_nonzero(self.pixels) + np.count_nonzero(other.pixels) - common
        return common / union if union else 1.0

    def _part(self, rows: slice, columns: slice) -> NDArray[np.bool_]:
        """The pixels in rows and columns of the image frame."""
        return self.pixels[rows.start - self.y : rows.stop - self.y, columns.start - self.x : columns.stop - self.x]


def _overlap(one: slice, other: slice) -> slice:
    start = max(one.start, other.start)
    return slice(start, max(start, min(one.stop, other.stop)))


def _extent(occupied: NDArray[np.bool_]) -> slice:
    positions = np.flatnonzero(occupied)
    return slice(int(positions[0]), int(positions[-1]) + 1) if positions.size else slice(0, 0)
