"""Refined masks in a detector's outputs, in the same `Instances`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor

from phoenix_d2.ops.masks import masks_to_boxes
from phoenix_d2.refiner import MaskRefiner
from phoenix_d2.structures import RefinementResult, RefinementStatus


def refine_instances(
    refiner: MaskRefiner, image: Tensor, instances: Instances, *, update_boxes: bool = False, rescore: bool = False
) -> Instances:
    """Refine the masks of one image's detections.

    Args:
        refiner: in evaluation mode, on any device.
        image: (3, H, W) RGB in 0 to 255, uint8 or float, in the frame of the masks.
        instances: with `pred_masks` (N, H, W), bool or 0 and 1 of any other type; instances without
            are returned as they are.
        update_boxes: let `pred_boxes` follow the masks; the box of an empty mask stays.
        rescore: multiply `scores` by the predicted IoU of the refined masks, or of the coarse ones that the
            gate kept; a score stays where the decoder predicts none.

    Returns:
        New instances with the same fields in the same order, each of its former type and on its former device.

    Raises:
        ValueError: image and masks differ in size.
    """
    if not instances.has("pred_masks"):
        return instances
    fields = instances.get_fields().copy()
    result = refiner.refine(image, fields["pred_masks"] > 0.5)
    fields["pred_masks"] = result.masks.to(fields["pred_masks"])
    if update_boxes and "pred_boxes" in fields:
        fields["pred_boxes"] = _boxes_of(result.masks, otherwise=fields["pred_boxes"])
    if rescore and "scores" in fields:
        fields["scores"] = fields["scores"] * _mask_quality(result).to(fields["scores"])
    return Instances(instances.image_size, **fields)


def image_in_output_frame(image: Tensor, output_size: tuple[int, int], image_format: str) -> Tensor:
    """Bring a detector's input image to the frame of its outputs, for `refine_instances`.

    The test augmentation has already resized the image, and resizing it back does not restore it: detail
    finer than the detector's input stays lost, and an image that was enlarged comes back slightly blurred.

    Args:
        image: (3, h, w) in 0 to 255, as the detector was given it.
        output_size: (H, W) of its outputs.
        image_format: order of its channels, "RGB" or "BGR".

    Returns:
        (3, H, W) float RGB, bilinear with antialiasing.
    """
    rgb = image.flip(0) if image_format == "BGR" else image
    resized = F.interpolate(rgb[None].float(), output_size, mode="bilinear", antialias=True, align_corners=False)
    return resized[0]


def _boxes_of(masks: Tensor, *, otherwise: Boxes) -> Boxes:
    boxes = masks_to_boxes(masks).to(otherwise.tensor)
    empty = boxes[:, 2:3] == 0
    return Boxes(torch.where(empty, otherwise.tensor, boxes))


def _mask_quality(result: RefinementResult) -> Tensor:
    """(N,) predicted IoU in [0, 1], which the decoder may overstep; 1 where there is no prediction."""
    refined, rejected = (
        result.status == status for status in (RefinementStatus.REFINED, RefinementStatus.KEPT_REJECTED)
    )
    # without a factor of their own, the masks that the gate kept would overtake those that became better
    quality = torch.where(rejected, result.coarse_iou_predictions, torch.nan)
    quality = torch.where(refined, result.iou_predictions, quality)
    return quality.clamp(0, 1).nan_to_num(nan=1.0)
