"""What is done with each mask of an image: refined in the whole image, on a window of its own, or kept as it is.

Shape letters as in `structures`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from phoenix_d2.ops.frames import Frame
from phoenix_d2.ops.masks import masks_to_boxes
from phoenix_d2.ops.windows import zoom_window
from phoenix_d2.options import RefineOptions
from phoenix_d2.prompting.cues import UserCues
from phoenix_d2.structures import RefinementStatus

MIN_LOW_RES_AREA = 16
"""A mask of fewer low-resolution pixels says too little to be prompted with."""


def plan_masks(masks: Tensor, whole: Frame, options: RefineOptions, cues: UserCues) -> tuple[Tensor, dict[int, Frame]]:
    """Say what is to be done with the (N, H, W) bool masks of an image.

    Args:
        masks: (N, H, W) bool.
        whole: frame of the image.
        options: which masks are zoomed.
        cues: for the masks, which windows hold too.

    Returns:
        (N,) long, values of `RefinementStatus`, and by index the frames of those that are to be refined.
    """
    boxes = masks_to_boxes(masks)
    # one by one: summing bool masks at once would first spread each pixel over eight bytes
    areas = torch.stack([mask.count_nonzero() for mask in masks]) if len(masks) else masks.new_zeros(0)
    low_res_area = areas * (whole.low_res_size / max(whole.window_size)) ** 2
    small = low_res_area < MIN_LOW_RES_AREA
    status = torch.full((len(masks),), int(RefinementStatus.REFINED), device=masks.device)
    if not options.zoom_small:
        status[small] = int(RefinementStatus.KEPT_SMALL)
    status[boxes[:, 2] == 0] = int(RefinementStatus.KEPT_EMPTY)

    frames = {}
    rows = zip(status.tolist(), small.tolist(), cues.around(boxes).tolist(), strict=True)
    for i, (mask_status, is_small, box) in enumerate(rows):
        if mask_status == RefinementStatus.REFINED:
            x0, y0, x1, y1 = window = zoom_window(whole.image_size, box, options.zoom_context)
            zoom = is_small or max(x1 - x0, y1 - y0) < options.zoom_below * max(whole.image_size)
            frames[i] = replace(whole, window=window) if zoom else whole
    return status, frames
