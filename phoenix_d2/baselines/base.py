"""What refiners have in common, and what those have that look at one object at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from phoenix_d2.ops.boundary import CroppedMask
from phoenix_d2.ops.windows import box_window
from phoenix_d2.structures import RefinementResult, RefinementStatus

Image: TypeAlias = NDArray[np.uint8]
Mask: TypeAlias = NDArray[np.bool_]

# margin of a crop around the object's box, as a share of the box's longer side
_CONTEXT = 0.25


class Refiner(Protocol):
    """Whatever refines the masks of an image; `PhoenixRefiner` is one."""

    def refine(self, image: Image, masks: Mask) -> RefinementResult:
        """Refine the masks of one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            masks: (N, H, W) bool.

        Returns:
            The result, its fields arrays.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class CropRefiner(ABC):
    """Refines mask by mask, each on a crop of the image around it, without a network.

    Nothing predicts the IoU of its masks: `iou_predictions`, `coarse_iou_predictions`, `iou_trace` and
    `predicted_gain` are NaN, and there are neither logits ((N, 0, 0)) nor evidence for a gate ((N, 0)).
    """

    @abstractmethod
    def refine_crop(self, image: Image, mask: Mask) -> Mask:
        """Refine one mask: (h, w, 3) uint8 RGB and a (h, w) bool mask that is not empty -> (h, w) bool."""

    def refine(self, image: Image, masks: Mask) -> RefinementResult:
        """Refine the masks of one image; those that are empty, or would become so, stay as they were.

        Args:
            image: (H, W, 3) uint8 RGB.
            masks: (N, H, W) bool.

        Returns:
            The result, its fields arrays; the traces have one pass.

        Raises:
            ValueError: image and masks are not as described.
        """
        _check_inputs(image, masks)
        # decoded RLE lies column by column in memory, which OpenCV does not take
        masks = np.ascontiguousarray(masks)
        refined, changes = masks.copy(), np.ones(len(masks), np.float32)
        status = np.full(len(masks), int(RefinementStatus.REFINED))
        for i, mask in enumerate(masks):
            if not mask.any():
                status[i] = RefinementStatus.KEPT_EMPTY
                continue
            window = _window(mask)
            crop = self.refine_crop(np.ascontiguousarray(image[window]), np.ascontiguousarray(mask[window]))
            if not crop.any():
                status[i] = RefinementStatus.KEPT_VANISHED
                continue
            changes[i] = CroppedMask.of(crop).iou(CroppedMask.of(mask[window]))
            refined[i][window] = crop
        unknown = np.full(len(masks), np.nan, np.float32)
        arrays: dict[str, Any] = {
            "masks": refined,
            "iou_predictions": unknown,
            "coarse_iou_predictions": unknown,
            "low_res_logits": np.zeros((len(masks), 0, 0), np.float32),
            "status": status,
            "iou_trace": unknown[:, None],
            "change_trace": changes[:, None],
            "evidence": np.zeros((len(masks), 0), np.float32),
            "predicted_gain": unknown,
        }
        return RefinementResult(**arrays)


def object_scale(mask: Mask) -> float:
    """Side in pixels of the square that has a mask's area."""
    return float(np.sqrt(np.count_nonzero(mask)))


def _window(mask: Mask) -> tuple[slice, slice]:
    """Rows and columns of the crop around a mask."""
    *_, width, height = cv2.boundingRect(mask.view(np.uint8))
    return box_window(mask, margin=max(round(_CONTEXT * max(width, height)), 1))


def _check_inputs(image: Image, masks: Mask) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        remedy = "Use phoenix_d2.data.images.read_image, which turns any image file into that."
        raise ValueError(f"Expected an RGB image (H, W, 3) uint8, got {image.shape} {image.dtype}. {remedy}")
    if masks.ndim != 3 or masks.shape[1:] != image.shape[:2] or masks.dtype != np.bool_:
        raise ValueError(
            f"Expected bool masks (N, {image.shape[0]}, {image.shape[1]}), as large as the image, got {masks.shape} "
            f"{masks.dtype}: threshold or resize them."
        )
