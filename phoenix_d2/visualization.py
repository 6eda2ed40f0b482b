"""Pictures: masks over images, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from phoenix_d2.ops.windows import zoom_window

Image: TypeAlias = NDArray[np.uint8]
"""(H, W, 3) RGB."""

_COLORS = ((255, 64, 64), (64, 160, 255), (64, 220, 96), (255, 176, 0), (200, 96, 255), (0, 208, 208))
_OPACITY = 0.4
_GAINED, _LOST = (64, 220, 96), (255, 64, 64)


def draw_masks(image: Image, masks: NDArray[np.bool_]) -> Image:
    """Fill masks and trace their outlines, each in the next colour.

    Args:
        image: (H, W, 3) RGB; not changed.
        masks: (N, H, W) bool.
    """
    canvas: Image = image.copy()
    for mask, color in zip(masks, cycle(_COLORS), strict=False):
        rgb = np.array(color, dtype=np.float32)
        canvas[mask] = ((1 - _OPACITY) * canvas[mask] + _OPACITY * rgb).astype(np.uint8)
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        # on a dark rim the outline shows on every background
        cv2.drawContours(canvas, contours, -1, (0, 0, 0), 3)
        cv2.drawContours(canvas, contours, -1, color, 1)
    return canvas


def draw_change(image: Image, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Image:
    """Fill what one mask has and another, both (H, W), has not: green what was gained, red what was lost."""
    canvas: Image = image.copy()
    for pixels, color in ((after & ~before, _GAINED), (before & ~after, _LOST)):
        canvas[pixels] = (0.3 * canvas[pixels] + 0.7 * np.array(color, dtype=np.float32)).astype(np.uint8)
    return canvas


def captioned(image: Image, caption: str) -> Image:
    """A picture under a line of text, which is cut where the picture ends."""
    banner = np.full((22, image.shape[1], 3), 255, dtype=np.uint8)
    cv2.putText(banner, caption, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([banner, image])


def side_by_side(images: Sequence[Image], titles: Sequence[str]) -> Image:
    """Join pictures of one height in a row, each under its title."""
    columns = [captioned(image, title) for image, title in zip(images, titles, strict=True)]
    gap = np.full((columns[0].shape[0], 4, 3), 255, dtype=np.uint8)
    return np.hstack([part for column in columns for part in (column, gap)][:-1])


def compare_masks(
    image: Image,
    masks: Mapping[str, NDArray[np.bool_]],
    *,
    context: float = 1.5,
    side: int = 256,
    change: tuple[str, str] | None = None,
) -> Image:
    """Different masks of one object side by side, cut to the object and enlarged.

    Args:
        image: (H, W, 3) RGB.
        masks: by title, each (H, W) bool.
        context: side of the square that is shown, in units of the long side of the masks' common box.
        side: the longer one of each picture in pixels; where the image is large enough, both.
        change: titles of two masks; what the second gained and lost against the first is shown at the end.
    """
    x, y, width, height = cv2.boundingRect(np.any(list(masks.values()), axis=0).astype(np.uint8))
    # of masks without a pixel, the whole image
    box = (x, y, x + width, y + height) if width else (0, 0, image.shape[1], image.shape[0])
    x0, y0, x1, y1 = zoom_window(image.shape[:2], box, context)
    scale = side / max(x1 - x0, y1 - y0)
    size = max(round((x1 - x0) * scale), 1), max(round((y1 - y0) * scale), 1)
    crop = np.asarray(cv2.resize(image[y0:y1, x0:x1], size, interpolation=cv2.INTER_CUBIC), np.uint8)
    enlarged = {
        title: cv2.resize(mask[y0:y1, x0:x1].astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5
        for title, mask in masks.items()
    }
    pictures = {"image": crop} | {title: draw_masks(crop, mask[None]) for title, mask in enlarged.items()}
    if change is not None:
        pictures["gained (green), lost (red)"] = draw_change(crop, *(enlarged[title] for title in change))
    return side_by_side(list(pictures.values()), list(pictures))


def contact_sheet(pictures: Sequence[Image], *, columns: int = 2) -> Image:
    """Pictures of any sizes in rows of `columns`, on white."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    sheet = np.full((len(rows) * (height + 8), columns * (width + 8), 3), 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + 8), j * (width + 8)
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def training_panel(panel: Mapping[str, Tensor]) -> Image:
    """A training sample side by side.

    Args:
        panel: "image", (3, h, w) uint8 RGB at the size of the model input, and masks by name, each (s, s)
            probabilities or bool in the low-resolution frame.
    """
    image = np.ascontiguousarray(panel["image"].cpu().numpy().transpose(1, 2, 0))
    height, width = image.shape[:2]
    pictures, titles = [image], ["image"]
    for name, mask in panel.items():
        if name != "image":
            side = max(height, width)
            full = cv2.resize(mask.float().cpu().numpy(), (side, side), interpolation=cv2.INTER_LINEAR)
            pictures.append(draw_masks(image, (full[None, :height, :width] > 0.5)))
            titles.append(name)
    return side_by_side(pictures, titles)
