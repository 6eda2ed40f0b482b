"""Prompts that stand for a user's in training: points on a target, or a box around it.

Shape letters as in `structures`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phoenix_d2.ops.masks import masks_to_boxes
from phoenix_d2.prompting.boxes import box_corners
from phoenix_d2.prompting.points import to_sam_coords
from phoenix_d2.structures import PointLabel, Prompts

MAX_CLICKS = 3
"""Most points on a target that `simulate_prompts` draws."""


def simulate_prompts(target_masks: Tensor, *, stride: int, generator: torch.Generator) -> Prompts:
    """What a user would ask for a target with: one to three points on it, or its box, one as often as the other.

    Args:
        target_masks: (N, s, s) bool, not empty.
        stride: model-input pixels a low-resolution pixel.
        generator: decides which, and where.

    Returns:
        Prompts of N masks without mask prompt.
    """
    n, device = len(target_masks), target_masks.device
    clicks = [pixel_centres(draw_pixels(target_masks, generator), target_masks, stride) for _ in range(MAX_CLICKS)]
    boxes = jittered_boxes(target_masks, stride=stride, generator=generator)
    count = torch.randint(1, MAX_CLICKS + 1, (n, 1), generator=generator).to(device)
    is_box = torch.rand(n, 1, generator=generator).to(device) < 0.5
    clicked = (torch.arange(MAX_CLICKS, device=device) < count) & ~is_box
    corners = torch.tensor([PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT], device=device)
    labels = [
        torch.where(clicked, int(PointLabel.FOREGROUND), int(PointLabel.PADDING)),
        torch.where(is_box, corners, int(PointLabel.PADDING)),
    ]
    return Prompts(torch.cat([*clicks, boxes], dim=1), torch.cat(labels, dim=1))


def jittered_boxes(target_masks: Tensor, *, stride: int, generator: torch.Generator) -> Tensor:
    """(N, 2, 2) `box_corners` of the targets, moved as SAM's in training: by a tenth of the side, at most 20 pixels."""
    boxes = masks_to_boxes(target_masks).float() * stride
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    noise = torch.randn(boxes.shape, generator=generator).to(boxes.device) * 0.1 * sides
    return box_corners(boxes + noise.clamp(-20, 20))


def draw_pixels(regions: Tensor, generator: torch.Generator) -> Tensor:
    """One pixel of each (N, s, s) bool region, uniformly: (N, 1) flat indices; any pixel of an empty region."""
    weights = regions.flatten(1).to("cpu", torch.float32) + 1e-12
    return torch.multinomial(weights, 1, generator=generator).to(regions.device)


def pixel_centres(pixels: Tensor, masks: Tensor, stride: int) -> Tensor:
    """(N, 1) flat pixels of (N, s, s) masks to (N, 1, 2) points as segment-anything takes them."""
    side = masks.shape[-1]
    xy = torch.stack([pixels % side, pixels // side], dim=-1)
    return to_sam_coords((xy + 0.5) * stride)
