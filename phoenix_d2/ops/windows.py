"""Windows of an image: one around an object, and overlapping ones along an outline, blended without seams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """One of the overlapping windows that cover an area, and how much it has to say on each of its pixels.

    At every pixel of the area, the weights of all its tiles add up to 1. They vary linearly from tile to tile, so that
    what the tiles say is joined without a seam.

    Attributes:
        window: (x0, y0, x1, y1) pixels of the image, exclusive maxima.
        row_weights: (y1 - y0,) float in [0, 1].
        column_weights: (x1 - x0,) float in [0, 1]; a pixel's weight is the product.
    """

    window: tuple[int, int, int, int]
    row_weights: Tensor
    column_weights: Tensor

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the window."""
        x0, y0, x1, y1 = self.window
        return slice(y0, y1), slice(x0, x1)

    @property
    def weights(self) -> Tensor:
        """(y1 - y0, x1 - x0) float in [0, 1]."""
        return self.row_weights[:, None] * self.column_weights

    def blend(self, blended: Tensor, base: Tensor, values: Tensor) -> None:
        """Move `blended`, in place, from `base` towards the tile's values by its weights.

        Where all tiles of a pixel do so, `blended` becomes their weighted mean; the share of those that do not stays
        with `base`.

        Args:
            blended: (H, W) float, a copy of `base` before the first tile.
            base: (H, W) float or bool.
            values: (y1 - y0, x1 - x0) float.
        """
        blended[self.slices] += self.weights * (values - base[self.slices].to(values.dtype))


def tile(area: tuple[int, int, int, int], side: int, device: torch.device | None = None) -> list[Tile]:
    """Cover an area with square windows that overlap by at least half.

    Args:
        area: (x0, y0, x1, y1) pixels of the image, exclusive maxima.
        side: of the windows in pixels, at least 2; where the area is shorter, they are as short.
        device: of the weights.
    """
    x0, y0, x1, y1 = area
    columns, rows = _intervals(x0, x1, side, device), _intervals(y0, y1, side, device)
    return [
        Tile((left, top, right, bottom), row_weights, column_weights)
        for top, bottom, row_weights in rows
        for left, right, column_weights in columns
    ]


def tiles_along(edge: Tensor, area: tuple[int, int, int, int], side: int) -> list[Tile]:
    """Those tiles of an area (see `tile`) that have a say on any pixel of `edge`, (H, W) bool in the image frame."""
    return [t for t in tile(area, side, edge.device) if (edge[t.slices] & (t.weights > 0)).any()]


def outline(masks: Tensor) -> Tensor:
    """Pixels on both sides of masks' outlines; the image's border is no outline.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, H, W) bool.
    """
    pixels = F.pad(masks[:, None].float(), (1, 1, 1, 1), mode="replicate")
    # the cross of 3 x 3: a pixel unlike one of its four neighbours
    across = F.max_pool2d(pixels, (1, 3), 1) + F.max_pool2d(-pixels, (1, 3), 1)
    down = F.max_pool2d(pixels, (3, 1), 1) + F.max_pool2d(-pixels, (3, 1), 1)
    return (across[:, 0, 1:-1] + down[:, 0, :, 1:-1]) > 0


def box_window(mask: NDArray[np.bool_], *, margin: int = 0, share: float = 0.0) -> tuple[slice, slice]:
    """Rows and columns of a mask's box with a margin on all sides, where there is image.

    Args:
        mask: (H, W) bool; an empty one has an empty box at (0, 0).
        margin: in pixels, at least.
        share: of the box's side along the same axis, where that is more.
    """
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    across, down = (max(round(share * side), margin) for side in (width, height))
    # indexing cuts what lies beyond the image's end
    return slice(max(y - down, 0), y + height + down), slice(max(x - across, 0), x + width + across)


def zoom_window(image_size: tuple[int, int], box: Sequence[float], context: float) -> tuple[int, int, int, int]:
    """The square of `context` times the long side of a box around its centre, moved and cut to fit the image.

    Args:
        image_size: (height, width) in pixels.
        box: XYXY in pixels, exclusive maxima.
        context: side of the square in units of the box's long side.

    Returns:
        (x0, y0, x1, y1) pixels of the image, exclusive maxima.
    """
    side = max(round(context * max(box[2] - box[0], box[3] - box[1])), 1)
    (y0, y1), (x0, x1) = (
        _fit(round((low + high - side) / 2), side, limit)
        for low, high, limit in ((box[1], box[3], image_size[0]), (box[0], box[2], image_size[1]))
    )
    return x0, y0, x1, y1


def _fit(start: int, length: int, limit: int) -> tuple[int, int]:
    length = min(length, limit)
    start = min(max(start, 0), limit - length)
    return start, start + length


def _intervals(start: int, end: int, side: int, device: torch.device | None) -> list[tuple[int, int, Tensor]]:
    """Start, end and weights of the intervals that cover one axis."""
    side = min(side, end - start)
    starts = torch.tensor([*range(start, end - side, max(side // 2, 1)), end - side], device=device)
    # between the centres of two neighbours, one fades into the other; before the first and behind the last, it is alone
    positions = torch.arange(start, end, device=device, dtype=torch.float32)[:, None]
    gaps = starts.diff()
    fade_in = ((positions - starts[:-1] - (side - 1) / 2) / gaps).clamp(0, 1)
    ones = fade_in.new_ones(len(positions), 1)
    weights = torch.cat([ones, fade_in], 1) - torch.cat([fade_in, 0 * ones], 1)
    return [
        (first, first + side, weights[first - start : first - start + side, i])
        for i, first in enumerate(starts.tolist())
    ]
