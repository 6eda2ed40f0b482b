"""Point prompts of a coarse mask, and segment-anything's convention for coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from phoenix_d2.prompting.depths import DepthMaps
from phoenix_d2.structures import PointLabel


def to_sam_coords(coords: Tensor) -> Tensor:
    """Continuous model-input coordinates (pixel centres at half-integers) as segment-anything takes them.

    It takes indices of pixels, and adds half a pixel itself to reach their centres.
    """
    return coords - 0.5


def sample_points(depths: DepthMaps, *, min_negative_depth: float = 1.0) -> tuple[Tensor, Tensor]:
    """One positive and one negative point a mask, each where its side of the mask is deepest.

    Of equally deep pixels the first in reading order is taken.

    Args:
        depths: depths of N masks, on the CPU.
        min_negative_depth: low-resolution pixels. The negative point must lie deeper, or its slot is
            padding: next to the mask it would say nothing that can be trusted.

    Returns:
        (N, 2, 2) float32 continuous (x, y) in the low-resolution frame, the centres of the positive
        and the negative pixel, and their (N, 2) long labels.
    """
    positive, _ = _deepest_pixels(depths.foreground)
    negative, negative_depth = _deepest_pixels(depths.background)
    labels = torch.full((len(positive), 2), int(PointLabel.FOREGROUND), device=positive.device)
    labels[:, 1] = torch.where(negative_depth > min_negative_depth, int(PointLabel.BACKGROUND), int(PointLabel.PADDING))
    return torch.stack([positive, negative], dim=1), labels


def _deepest_pixels(depths: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 2) centres of the deepest pixels, and their (N,) depths."""
    flat = depths.flatten(1)
    # NumPy's argmax takes the first of equals as well, and a tenth of PyTorch's time
    index = torch.from_numpy(flat.numpy().argmax(axis=1))
    depth = flat.gather(1, index[:, None])[:, 0]
    width = depths.shape[2]
    return torch.stack([index % width, index // width], dim=1) + 0.5, depth
