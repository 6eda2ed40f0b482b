"""Box prompts: corners in segment-anything's convention, and boxes that grow into similar surroundings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from phoenix_d2.ops.masks import masks_to_boxes
from phoenix_d2.prompting.points import to_sam_coords

# the cosine above which a pixel resembles a mask
_MIN_SIMILARITY = 0.5


def box_corners(boxes: Tensor) -> Tensor:
    """Corner points of boxes: the first and the last pixel in each, as segment-anything takes them.

    Args:
        boxes: (N, 4) float, (x0, y0, x1, y1), continuous coordinates of the model input with
            exclusive maxima.

    Returns:
        (N, 2, 2) float, (x, y) of the top left and the bottom right corner.
    """
    return to_sam_coords(boxes.view(-1, 2, 2) + boxes.new_tensor([[0.5], [-0.5]]))


def grow_boxes(
    boxes: Tensor,
    masks: Tensor,
    *,
    image_embeddings: Tensor,
    margin: float,
    max_step: float,
    valid: Tensor | None = None,
) -> Tensor:
    """Move the sides of boxes outwards where the image goes on as it is inside the mask.

    SAMRefiner's context-aware elastic box. A side moves by a tenth of the box' extent across it, or
    not at all: it does when enough of the band that it would gain resembles the mean embedding of the
    mask, and when it stays inside the image. One call is one step; a cascade takes one a pass.

    Args:
        boxes: (N, 4) float, tight boxes of the masks with exclusive maxima.
        masks: (N, s, s) bool, in the frame of the boxes.
        image_embeddings: (N, C, h, w) or (1, C, h, w) float, covering the same frame. Interpolated to s x s
            once each, which is what this costs in memory.
        margin: share of a band that must be similar for its side to move.
        max_step: the longest step, in pixels of the frame.
        valid: (N, s, s) or (1, s, s) bool, pixels that hold image; all when None.

    Returns:
        (N, 4) float boxes.
    """
    extent = torch.stack([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]], dim=1)
    step = (0.1 * extent).clamp(max=max_step).repeat(1, 2)
    moved = boxes + step * boxes.new_tensor([-1, -1, 1, 1])
    share = _similar_share(_bands(boxes, moved), _similar_pixels(masks, image_embeddings))
    image = masks_to_boxes(masks.new_ones(1, *masks.shape[1:]) if valid is None else valid)
    inside = (moved > image[:, :2].repeat(1, 2)) & (moved < image[:, 2:].repeat(1, 2))
    return torch.where(inside & (share > margin), moved, boxes)


def _similar_pixels(masks: Tensor, image_embeddings: Tensor) -> Tensor:
    """(N, s, s) bool: pixels whose interpolated embedding resembles the mean embedding of the mask."""
    frame = masks.shape[-2:]
    embeddings = image_embeddings.float()
    _, _, height, width = embeddings.shape
    weights = F.adaptive_avg_pool2d(masks.float(), (height, width))
    # the sum will do for the mean: a cosine ignores length
    prototypes = weights.flatten(1)[:, None] @ embeddings.flatten(2).transpose(1, 2)
    # interpolation is linear, so it may follow the dot product, which leaves one channel a mask
    products = (prototypes @ embeddings.flatten(2)).view(-1, 1, height, width)
    lengths: Tensor = torch.linalg.vector_norm(_interpolate(embeddings, frame), dim=1)
    lengths = lengths * torch.linalg.vector_norm(prototypes, dim=2)[:, :, None]
    return _interpolate(products, frame)[:, 0] > _MIN_SIMILARITY * lengths


def _bands(boxes: Tensor, moved: Tensor) -> Tensor:
    """(N, 4, 4) boxes: what each side would gain by moving, across the old box."""
    x0, y0, x1, y1 = boxes.unbind(1)
    left, top, right, bottom = moved.unbind(1)
    bands = [(left, y0, x0, y1), (x0, top, x1, y0), (x1, y0, right, y1), (x0, y1, x1, bottom)]
    return torch.stack([torch.stack(band, dim=1) for band in bands], dim=1)


def _similar_share(bands: Tensor, similar: Tensor) -> Tensor:
    """(N, 4) share of the area of each band that is similar."""
    x0, y0, x1, y1 = bands.unbind(2)
    rows, columns = _coverage(y0, y1, similar.shape[1]), _coverage(x0, x1, similar.shape[2])
    area = rows.sum(2) * columns.sum(2)
    covered = torch.einsum("nbi,nij,nbj->nb", rows, similar.to(rows.dtype), columns)
    return covered / area.clamp(min=torch.finfo(area.dtype).tiny)


def _coverage(low: Tensor, high: Tensor, size: int) -> Tensor:
    """(..., size) share of each pixel of a line that lies between `low` and `high`."""
    pixel = torch.arange(size, device=low.device, dtype=low.dtype)
    return (torch.minimum(high[..., None], pixel + 1) - torch.maximum(low[..., None], pixel)).clamp(min=0)


def _interpolate(maps: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
