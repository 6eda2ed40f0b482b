"""Coarse masks that say where an object is, but nothing of its outline.

A decoder that is trained from scratch learns to copy the outline of its mask prompt long before it
learns to look for one in the image. Here there is none to copy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from phoenix_d2.ops.masks import masks_to_boxes


def shapeless_masks(target_masks: Tensor, *, generator: torch.Generator) -> Tensor:
    """Blur masks beyond recognition or fill their boxes, one as often as the other.

    Args:
        target_masks: (N, s, s) bool.
        generator: decides which, and how much.

    Returns:
        (N, s, s) bool; the mask itself where nothing would be left of it.
    """
    if len(target_masks) == 0:
        return target_masks
    blurred = _draw((len(target_masks), 1, 1), generator, target_masks.device) < 0.5
    coarse = torch.where(blurred, _blur(target_masks, generator), _fill_boxes(target_masks, generator))
    return torch.where(coarse.flatten(1).any(1)[:, None, None], coarse, target_masks)


def _blur(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian blur by 5 % to 35 % of the root of the area, thresholded between 0.3 and 0.6."""
    n, side = len(masks), masks.shape[-1]
    strength, level = _draw((2, n), generator, masks.device)
    sigma = (0.05 + 0.3 * strength) * masks.flatten(1).sum(1).sqrt().clamp(min=1)
    radius = side // 4
    offsets = torch.arange(-radius, radius + 1, device=masks.device)
    kernels = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True))[:, None, :, None]
    # one kernel a mask: masks are the channels of one image, each its own group
    soft = F.conv2d(masks[None].float(), kernels, padding=(radius, 0), groups=n)
    soft = F.conv2d(soft, kernels.transpose(2, 3), padding=(0, radius), groups=n)[0]
    coarse: Tensor = soft > (0.3 + 0.3 * level)[:, None, None]
    return coarse


def _fill_boxes(masks: Tensor, generator: torch.Generator) -> Tensor:
    """The box of each mask, its sides moved by up to a tenth of its size."""
    boxes = masks_to_boxes(masks).float()
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes = boxes + (_draw(boxes.shape, generator, masks.device) - 0.5) / 5 * sides
    x0, y0, x1, y1 = boxes[..., None].unbind(1)
    centre = torch.arange(masks.shape[-1], device=masks.device) + 0.5
    columns, rows = (centre > x0) & (centre < x1), (centre > y0) & (centre < y1)
    return rows[:, :, None] & columns[:, None, :]


def _draw(size: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Uniform draws from [0, 1), made where the generator lives."""
    return torch.rand(size, generator=generator, device=generator.device).to(device)
