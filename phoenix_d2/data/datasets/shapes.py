"""Shapes to draw or to cut out: outlines about the unit circle, and how they come to cover pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]

_SUPERSAMPLING = 4
_MIN_VISIBLE_SHARE = 0.35


class Outline(NamedTuple):
    """A shape about the unit circle.

    Attributes:
        contours: (K, 2) points (x, y) each; an inner contour is a hole.
        stroke: width of the line along the (then open) contours; 0 when the contours are closed and filled.
    """

    contours: tuple[Array, ...]
    stroke: float = 0.0


class Shape(NamedTuple):
    """An outline brought to pixels: its window in the picture, and the covered share of each pixel of the window."""

    window: tuple[slice, slice]
    coverage: Array

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the window."""
        return self.coverage.shape[0], self.coverage.shape[1]

    @property
    def mask(self) -> Mask:
        """(h, w) bool: the pixels of the window that are covered at least by half."""
        return self.coverage >= 0.5


def _polar(angles: NDArray[np.floating], radii: NDArray[np.floating] | float) -> Array:
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1).astype(np.float32)


def _turn(num_points: int) -> NDArray[np.float64]:
    return np.linspace(0.0, 2 * np.pi, num_points, endpoint=False)


def _disk(rng: np.random.Generator) -> Outline:
    return Outline((_polar(_turn(64), 1.0) * _aspect(rng),))


def _ring(rng: np.random.Generator) -> Outline:
    aspect = _aspect(rng)
    hole = rng.uniform(0.45, 0.75) * _polar(_turn(64), 1.0) + rng.uniform(-0.1, 0.1, 2)
    return Outline((_polar(_turn(64), 1.0) * aspect, hole.astype(np.float32) * aspect))


def _aspect(rng: np.random.Generator) -> Array:
    return np.array([1.0, rng.uniform(0.55, 1.0)], np.float32)


def _star(rng: np.random.Generator) -> Outline:
    num_tips = int(rng.integers(4, 9))
    radii = np.where(np.arange(2 * num_tips) % 2, rng.uniform(0.3, 0.6), rng.uniform(0.8, 1.0, 2 * num_tips))
    return Outline((_polar(_turn(2 * num_tips), radii),))


def _polygon(rng: np.random.Generator) -> Outline:
    num_corners = int(rng.integers(3, 8))
    angles = _turn(num_corners) + rng.uniform(-0.35, 0.35, num_corners) * 2 * np.pi / num_corners
    return Outline((_polar(angles, rng.uniform(0.6, 1.0, num_corners)),))


def _blob(rng: np.random.Generator) -> Outline:
    angles, waves = _turn(96), np.arange(2, 8)
    phases, strengths = rng.uniform(0, 2 * np.pi, waves.size), rng.normal(0, 0.28, waves.size) / waves**0.7
    radii = 1 + (strengths * np.cos(np.outer(angles, waves) + phases)).sum(axis=1)
    return Outline((_polar(angles, np.clip(radii, 0.2, None) / radii.max()),))


def _stroke(rng: np.random.Generator) -> Outline:
    way = np.linspace(0, 1, 48)
    heading = rng.uniform(0.5, 2.5) * np.sin(2 * np.pi * rng.uniform(0.4, 1.2) * way)
    steps = _polar(heading, 1.0)
    curve = np.cumsum(steps, axis=0)
    curve -= (curve.max(axis=0) + curve.min(axis=0)) / 2
    return Outline((curve / np.linalg.norm(curve, axis=1).max(),), stroke=rng.uniform(0.12, 0.3))


class Category(NamedTuple):
    """A kind of outline.

    Attributes:
        name: what it is called.
        frequency: LVIS' group of it.
        weight: how often it is drawn.
        outline: draws one.
    """

    name: str
    frequency: str
    weight: float
    outline: Callable[[np.random.Generator], Outline]


# LVIS' frequency groups (frequent, common, rare) by how often the category is drawn
CATEGORIES = (
    Category("blob", "f", 0.28, _blob),
    Category("disk", "f", 0.2, _disk),
    Category("polygon", "f", 0.2, _polygon),
    Category("star", "c", 0.13, _star),
    Category("ring", "c", 0.11, _ring),
    Category("stroke", "r", 0.08, _stroke),
)


def draw_category(rng: np.random.Generator) -> Category:
    """One of `CATEGORIES`, each as often as its weight says."""
    return CATEGORIES[rng.choice(len(CATEGORIES), p=[category.weight for category in CATEGORIES])]


def rasterise(
    outline: Outline, image_size: tuple[int, int], rng: np.random.Generator, diameter: tuple[float, float]
) -> Shape:
    """Turn, scale and move an outline at random, and measure how much of each pixel it covers.

    The centre lies in the picture; the rest may reach beyond its border. `diameter` is the range of sizes as shares
    of the picture's shorter side.
    """
    radius = np.exp(rng.uniform(*np.log(diameter))) * min(image_size) / 2
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = rng.uniform(0, image_size[::-1])
    contours = [radius * contour @ rotation + centre for contour in outline.contours]
    stroke = radius * outline.stroke

    points = np.concatenate(contours)
    x0, y0 = np.clip(np.floor(points.min(axis=0) - stroke), 0, np.subtract(image_size[::-1], 1)).astype(int)
    x1, y1 = np.clip(np.ceil(points.max(axis=0) + stroke), (x0 + 1, y0 + 1), image_size[::-1]).astype(int)
    fine = np.zeros((_SUPERSAMPLING * (y1 - y0), _SUPERSAMPLING * (x1 - x0)), np.uint8)
    scaled = [np.rint(_SUPERSAMPLING * (contour - (x0, y0))).astype(np.int32) for contour in contours]
    if outline.stroke:
        cv2.polylines(fine, scaled, isClosed=False, color=255, thickness=max(1, round(_SUPERSAMPLING * stroke)))
    else:
        cv2.fillPoly(fine, scaled, 255)
    coverage = cv2.resize(fine, (int(x1 - x0), int(y1 - y0)), interpolation=cv2.INTER_AREA)
    return Shape((slice(y0, y1), slice(x0, x1)), np.float32(1 / 255) * coverage)


def finds_room(shape: Shape, owner: NDArray[np.integer], areas: list[int], min_visible_area: int) -> bool:
    """Whether a shape in front of all others is large enough itself and leaves enough of each of them to be seen."""
    if shape.mask.sum() < min_visible_area:
        return False
    hidden = np.bincount(owner[shape.window][shape.mask], minlength=len(areas))
    visible = np.bincount(owner.ravel(), minlength=len(areas)) - hidden
    needed = np.maximum(min_visible_area, _MIN_VISIBLE_SHARE * np.array(areas))
    return bool((visible >= needed)[1:].all())


def paint(canvas: Array, shape: Shape, fill: Array, opacity: float) -> None:
    """Lay a shape over the canvas, in place."""
    canvas[shape.window] += opacity * shape.coverage[..., None] * (fill - canvas[shape.window])
