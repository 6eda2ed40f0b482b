"""Open-close smoothing, the trivial baseline: it looks at no image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from phoenix_d2.baselines.base import CropRefiner, Image, Mask, object_scale


@dataclass(frozen=True, kw_only=True)
class Morphology(CropRefiner):
    """Opens a mask, then closes it, with an ellipse: spurs and specks go, dents and small holes are filled.

    Attributes:
        kernel: diameter of the ellipse, as a share of the side of the square that has the mask's area.

    Raises:
        ValueError: a parameter is out of range.
    """

    kernel: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.kernel < 1:
            raise ValueError(f"kernel {self.kernel} is a share of the object's size and must be between 0 and 1.")

    def refine_crop(self, image: Image, mask: Mask) -> Mask:
        """Refine one mask: (h, w, 3) uint8 RGB and a (h, w) bool mask that is not empty -> (h, w) bool."""
        radius = max(round(self.kernel * object_scale(mask) / 2), 1)
        ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        # room for closing to dilate into, since the crop may end at the image's border
        padded = np.pad(mask.astype(np.uint8), radius, mode="edge")
        smooth = cv2.morphologyEx(cv2.morphologyEx(padded, cv2.MORPH_OPEN, ellipse), cv2.MORPH_CLOSE, ellipse)
        refined: Mask = smooth[radius:-radius, radius:-radius].astype(bool)
        return refined
