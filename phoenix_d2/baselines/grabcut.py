"""GrabCut (Rother et al. 2004), started from a coarse mask."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from phoenix_d2.baselines.base import CropRefiner, Image, Mask, object_scale


@dataclass(frozen=True, kw_only=True)
class GrabCut(CropRefiner):
    """Lets two colour models and a graph cut decide the rim of a mask; what is deep inside or far outside stays.

    Attributes:
        rim: distance from the coarse outline up to which pixels are decided anew, as a share of the side of the square
            that has the mask's area. Inside, the deeper half of the mask stays foreground whatever this says.
        iterations: rounds of fitting the colour models and cutting; more change little.
        max_side: longer side in pixels above which a crop is worked on reduced, which bounds the time a mask.

    Raises:
        ValueError: a parameter is out of range.
    """

    rim: float = 0.07
    iterations: int = 1
    max_side: int = 256

    def __post_init__(self) -> None:
        if not self.rim > 0:
            raise ValueError(f"rim {self.rim} is a share of the object's size and must be above 0.")
        if self.iterations < 1 or self.max_side < 1:
            raise ValueError(f"iterations {self.iterations} and max_side {self.max_side} must be at least 1.")

    def refine_crop(self, image: Image, mask: Mask) -> Mask:
        """Refine one mask: (h, w, 3) uint8 RGB and a (h, w) bool mask that is not empty -> (h, w) bool."""
        height, width = mask.shape
        scale = self.max_side / max(height, width)
        if scale >= 1:
            return self._cut(image, mask)
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        small_image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        small_mask = _resize(mask, size, cv2.INTER_AREA)
        if not small_mask.any():
            return mask
        cut = self._cut(np.asarray(small_image, np.uint8), small_mask)
        return _resize(cut, (width, height), cv2.INTER_LINEAR)

    def _cut(self, image: Image, mask: Mask) -> Mask:
        if mask.all():
            return mask  # nothing to learn the background's colours from
        labels = self._labels(mask)
        # its colour models start from k-means, which draws from OpenCV's global generator
        cv2.setRNGSeed(0)
        background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(image, labels, (0, 0, 0, 0), background, foreground, self.iterations, cv2.GC_INIT_WITH_MASK)
        return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))

    def _labels(self, mask: Mask) -> Image:
        """What is sure and what is to be decided, in GrabCut's own labels."""
        rim = self.rim * object_scale(mask)
        inside, outside = (
            np.asarray(cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5))
            for side in (mask, ~mask)
        )
        labels: Image = np.where(mask, np.uint8(cv2.GC_PR_FGD), np.uint8(cv2.GC_PR_BGD))
        labels[inside > min(rim, inside.max() / 2)] = cv2.GC_FGD
        labels[outside > rim] = cv2.GC_BGD
        return labels


def _resize(mask: Mask, size: tuple[int, int], interpolation: int) -> Mask:
    """Resize to (width, height)."""
    return np.asarray(cv2.resize(mask.astype(np.float32), size, interpolation=interpolation) >= 0.5)
