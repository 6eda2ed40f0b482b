"""Measures and boxes of masks.

Empty masks: two empty masks agree perfectly (IoU 1), an empty mask has the box (0, 0, 0, 0), and it
is never refined, because nothing says which object is meant.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_iou(masks: Tensor, others: Tensor, valid: Tensor | None = None) -> Tensor:
    """Intersection over union of paired masks.

    Args:
        masks: (N, h, w) bool.
        others: (N, h, w) bool, in the same frame.
        valid: (N, h, w) or (1, h, w) bool, pixels that count; all when None.

    Returns:
        (N,) float32 in [0, 1]; 1 where both masks are empty.
    """
    intersection, union = masks & others, masks | others
    if valid is not None:
        intersection, union = intersection & valid, union & valid
    area = union.flatten(1).sum(1)
    return torch.where(area > 0, intersection.flatten(1).sum(1) / area.clamp(min=1), 1.0)


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Tight boxes of masks.

    Args:
        masks: (N, h, w) bool.

    Returns:
        (N, 4) int64, (x0, y0, x1, y1) in pixels with exclusive maxima, as Detectron2's
        `BitMasks.get_bounding_boxes`; zeros for an empty mask.
    """
    columns, rows = masks.any(dim=1), masks.any(dim=2)
    x0, x1 = _first_and_end(columns)
    y0, y1 = _first_and_end(rows)
    return torch.stack([x0, y0, x1, y1], dim=1)


def _first_and_end(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First set index and one past the last of each row of (N, n) bool; (0, 0) where none is set."""
    n = occupied.shape[1]
    position = torch.arange(n, device=occupied.device)
    first = torch.where(occupied, position, n).amin(dim=1)
    end = torch.where(occupied, position + 1, 0).amax(dim=1)
    return torch.where(end > 0, first, 0), end
