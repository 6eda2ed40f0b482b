"""Pictures: masks over images, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Image: TypeAlias = NDArray[np.uint8]
"""(H, W, 3) RGB."""

_COLORS = ((255, 64, 64), (64, 160, 255), (64, 220, 96), (255, 176, 0), (200, 96, 255), (0, 208, 208))


def draw_masks(image: Image, masks: NDArray[np.bool_], *, alpha: float = 0.4, color: int | None = None) -> Image:
    """Fill (N, H, W) masks with colour and trace their outlines.

    Args:
        image: (H, W, 3) RGB; not changed.
        masks: (N, H, W) bool.
        alpha: opacity of the fill.
        color: index into the palette for all masks; by default each mask gets the next colour.
    """
    canvas: Image = image.copy()
    for i, mask in enumerate(masks):
        rgb = np.array(_COLORS[(i if color is None else color) % len(_COLORS)], dtype=np.float32)
        canvas[mask] = ((1 - alpha) * canvas[mask] + alpha * rgb).astype(np.uint8)
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        # on a dark rim the outline shows on every background
        cv2.drawContours(canvas, contours, -1, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.drawContours(canvas, contours, -1, rgb.tolist(), 1)
    return canvas


def side_by_side(images: Sequence[Image], titles: Sequence[str], *, height: int | None = None) -> Image:
    """Join pictures of one size in a row, each under its title.

    Args:
        images: each (H, W, 3).
        titles: one each.
        height: to which all are scaled, pixels; by default they stay as they are.
    """
    columns = []
    for image, title in zip(images, titles, strict=True):
        if height is not None and height != image.shape[0]:
            width = max(round(image.shape[1] * height / image.shape[0]), 1)
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        banner = np.full((22, image.shape[1], 3), 255, dtype=np.uint8)
        cv2.putText(banner, title, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        columns.append(np.vstack([banner, image]))
    gap = np.full((columns[0].shape[0], 4, 3), 255, dtype=np.uint8)
    return np.hstack([part for column in columns for part in (column, gap)][:-1])


def compare_masks(
    image: Image, masks: Mapping[str, NDArray[np.bool_]], *, margin: float = 0.25, side: int = 256
) -> Image:
    """Different masks of one object side by side, cut to the object and enlarged.

    Args:
        image: (H, W, 3) RGB.
        masks: by title, each (H, W) bool.
        margin: shown around the masks, in units of their common box.
        side: the longer one of each picture in pixels.
    """
    rows, columns = (np.any(list(masks.values()), axis=0).any(axis=axis) for axis in (1, 0))
    window = tuple(_span(occupied, margin) for occupied in (rows, columns))
    crop = np.ascontiguousarray(image[window])
    scale = side / max(crop.shape[:2])
    height, width = (max(round(length * scale), 1) for length in crop.shape[:2])
    crop = np.asarray(cv2.resize(crop, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    pictures = [crop]
    for mask in masks.values():
        enlarged = cv2.resize(mask[window].astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
        pictures.append(draw_masks(crop, enlarged[None]))
    return side_by_side(pictures, ["image", *masks])


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


def _span(occupied: NDArray[np.bool_], margin: float) -> slice:
    """Range of the set places, widened by a margin; everything where none is set."""
    places = np.flatnonzero(occupied)
    if len(places) == 0:
        return slice(0, len(occupied))
    extra = round(margin * (places[-1] - places[0] + 1)) + 1
    return slice(max(int(places[0]) - extra, 0), int(places[-1]) + 1 + extra)
