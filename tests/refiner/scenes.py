"""Images, masks and decoders whose answers are known."""

from __future__ import annotations

import torch
from torch import Tensor

from phoenix_d2.structures import MaskPrediction, Prompts, RefinementStatus

# one image pixel is one low-resolution pixel of the test encoder
SIDE = 32


def echo(image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
    """Decode to the mask prompt itself, so that only frames and bookkeeping act on a mask."""
    assert prompts.mask_logits is not None
    iou = prompts.mask_logits.new_tensor([0.9, 0.5, 0.75, 0.25]).expand(len(prompts), 4)
    return MaskPrediction(prompts.mask_logits.expand(-1, 4, -1, -1), iou, prompts.mask_logits)


def image_of(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def rectangles(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Tensor:
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def random_rectangles(n: int, size: tuple[int, int], max_side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sides = torch.randint(1, max_side + 1, (n, 2), generator=generator)
    corners = (torch.rand(n, 2, generator=generator) * (torch.tensor(size[::-1]) - sides)).long()
    return rectangles(size, *(tuple(box) for box in torch.cat([corners, corners + sides], 1).tolist()))


def statuses(status: Tensor) -> list[RefinementStatus]:
    return [RefinementStatus(value) for value in status.tolist()]
