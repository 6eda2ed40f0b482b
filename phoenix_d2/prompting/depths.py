"""How deep pixels lie inside a mask, or inside the background of its box.

Depth maps come in two metrics: the exact Euclidean one, and the chamfer one of SAMRefiner, whose
treatment of borders differs as well. Both run on the host, on CPU tensors.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


class DepthMaps(NamedTuple):
    """Depths of N masks in the low-resolution frame, in its pixels.

    Attributes:
        foreground: (N, s, s) float32, distance of mask pixels to the nearest background; 0 elsewhere.
        background: (N, s, s) float32, distance of the background pixels in the mask's box to the
            mask; 0 elsewhere.
    """

    foreground: Tensor
    background: Tensor


def euclidean_depths(masks: Tensor, boxes: Tensor) -> DepthMaps:
    """Exact Euclidean depths; what lies beyond the frame is background.

    Args:
        masks: (N, s, s) bool, on the CPU.
        boxes: (N, 4) integer, tight boxes of the masks with exclusive maxima; an empty box leaves
            the depths of its mask at 0.
    """
    foreground, background = (np.zeros(masks.shape, np.float32) for _ in range(2))
    for n, (mask, (x0, y0, x1, y1)) in enumerate(zip(masks.numpy().view(np.uint8), boxes.tolist(), strict=True)):
        if x0 == x1:
            continue
        window = n, slice(y0, y1), slice(x0, x1)
        crop = mask[window[1:]]
        # all around a tight box is background, so a ring of one pixel stands for the rest of the frame
        foreground[window] = _distance_to_zero(np.pad(crop, 1))[1:-1, 1:-1]
        background[window] = _distance_to_zero(1 - crop)
    return DepthMaps(torch.from_numpy(foreground), torch.from_numpy(background))


def chamfer_depths(masks: Tensor, boxes: Tensor, *, valid: Tensor | None = None) -> DepthMaps:
    """Depths as SAMRefiner measures them: chamfer metric, and the border of the image is no background.

    Like SAMRefiner, the background leaves out the last row and the last column of the box. A mask
    that fills the image has the same depth everywhere.

    Args:
        masks: (N, s, s) bool, on the CPU.
        boxes: (N, 4) integer, tight boxes of the masks with exclusive maxima.
        valid: (N, s, s) or (1, s, s) bool, pixels that hold image; all when None.
    """
    outside = ~masks if valid is None else ~masks & valid
    to_background, to_mask = chamfer_distance(torch.cat([outside, masks])).chunk(2)
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    pixel = torch.arange(masks.shape[-1])
    columns, rows = (pixel >= x0) & (pixel < x1 - 1), (pixel >= y0) & (pixel < y1 - 1)
    return DepthMaps(to_background * masks, to_mask * (rows[:, :, None] & columns[:, None, :]))


def chamfer_distance(sources: Tensor) -> Tensor:
    """Chamfer distance of every pixel to the nearest source: a step costs 1, a diagonal step sqrt(2).

    A cheapest path goes along the row of its source first and only then up or down, so one pass
    along the rows and one sweep in either direction are exact.

    Args:
        sources: (N, h, w) bool.

    Returns:
        (N, h, w) float32; h + w, farther than any pixel can be, where a mask has no source.
    """
    height, width = sources.shape[1:]
    distance = torch.where(sources, 0.0, float(height + width))
    column = torch.arange(width, dtype=distance.dtype, device=sources.device)
    from_left = (distance - column).cummin(dim=2).values + column
    from_right = (distance + column).flip(2).cummin(dim=2).values.flip(2) - column
    distance = torch.minimum(from_left, from_right)
    return torch.minimum(_sweep_down(distance), _sweep_down(distance.flip(1)).flip(1))


def _sweep_down(distance: Tensor) -> Tensor:
    """Let every row of (N, h, w) distances take the straight and diagonal steps from the row above."""
    padded = F.pad(distance, (1, 1), value=math.inf)
    for above, row in pairwise(padded.unbind(1)):
        straight = above[:, 1:-1] + 1
        diagonal = torch.minimum(above[:, :-2], above[:, 2:]) + math.sqrt(2)
        row[:, 1:-1] = torch.minimum(row[:, 1:-1], torch.minimum(straight, diagonal))
    return padded[:, :, 1:-1]


def _distance_to_zero(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    distances = np.asarray(cv2.distanceTransform(image, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)
    # OpenCV's last bit depends on where in memory the image lies, and would settle which of equally deep pixels comes
    # first; squared distances are whole numbers
    return np.sqrt(np.rint(np.square(distances)))
