"""Points of masks whose deepest pixels are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from phoenix_d2.ops.masks import masks_to_boxes
from phoenix_d2.prompting.depths import chamfer_depths, euclidean_depths
from phoenix_d2.prompting.points import sample_points, to_sam_coords
from phoenix_d2.structures import PointLabel

SIDE = 64
GIVEN = [PointLabel.FOREGROUND, PointLabel.BACKGROUND]
PADDED = [PointLabel.FOREGROUND, PointLabel.PADDING]


def mask_of(*rectangles: tuple[int, int, int, int]) -> Tensor:
    """(1, s, s) union of (x0, y0, x1, y1) rectangles."""
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    for x0, y0, x1, y1 in rectangles:
        mask[0, y0:y1, x0:x1] = True
    return mask


def disk(x: float, y: float, radius: float) -> Tensor:
    centre = torch.arange(SIDE) + 0.5
    return ((centre - x) ** 2 + (centre[:, None] - y) ** 2 < radius**2)[None]


def points_of(mask: Tensor) -> tuple[list[list[float]], list[int]]:
    coords, labels = sample_points(euclidean_depths(mask, masks_to_boxes(mask)))
    return coords[0].tolist(), labels[0].tolist()


def test_disk_has_its_centre_and_a_corner_of_its_box() -> None:
    coords, labels = points_of(disk(30.5, 24.5, 12))
    assert coords == [[30.5, 24.5], [19.5, 13.5]]
    assert labels == GIVEN


def test_rectangle_that_fills_its_box_has_no_negative() -> None:
    coords, labels = points_of(mask_of((10, 20, 17, 31)))
    assert coords[0] == [13.5, 23.5]
    assert labels == PADDED


def test_full_mask_has_its_point_inside_and_no_negative() -> None:
    coords, labels = points_of(mask_of((0, 0, SIDE, SIDE)))
    assert coords[0] == [31.5, 31.5]
    assert labels == PADDED


def test_negative_of_an_l_lies_in_the_notch() -> None:
    coords, labels = points_of(mask_of((10, 10, 16, 40), (10, 34, 40, 40)))
    assert coords[1] == [39.5, 10.5]
    assert labels == GIVEN


def test_object_at_the_border_has_its_point_inside() -> None:
    mask = disk(0, 32, 16)
    coords, _ = points_of(mask)
    assert coords[0][0] == 7.5 and abs(coords[0][1] - 32) < 4
    at_border, _ = sample_points(chamfer_depths(mask, masks_to_boxes(mask)))
    assert at_border[0, 0, 0] == 0.5


def test_background_one_pixel_deep_gives_no_negative() -> None:
    assert points_of(mask_of((10, 10, 30, 20), (10, 21, 30, 30)))[1] == PADDED
    assert points_of(mask_of((10, 10, 30, 20), (10, 23, 30, 30)))[1] == GIVEN


def test_negative_can_be_had_always() -> None:
    mask = mask_of((10, 20, 17, 31))
    coords, labels = sample_points(euclidean_depths(mask, masks_to_boxes(mask)), min_negative_depth=-math.inf)
    assert labels[0].tolist() == GIVEN
    assert coords[0, 1].tolist() == [0.5, 0.5]


def test_single_pixels_and_lines_have_finite_points() -> None:
    assert points_of(mask_of((5, 7, 6, 8)))[0][0] == [5.5, 7.5]
    assert points_of(mask_of((5, 7, 6, 50)))[0][0] == [5.5, 7.5]
    masks = torch.eye(SIDE, dtype=torch.bool)[None]
    coords, labels = sample_points(euclidean_depths(masks, masks_to_boxes(masks)))
    assert coords.isfinite().all() and labels[0].tolist() == GIVEN
    # the diagonal leaves two far corners; the first in reading order is taken
    assert coords[0, 1].tolist() == [SIDE - 0.5, 0.5]


def test_no_masks() -> None:
    masks = torch.zeros(0, SIDE, SIDE, dtype=torch.bool)
    coords, labels = sample_points(euclidean_depths(masks, masks_to_boxes(masks)))
    assert coords.shape == (0, 2, 2) and labels.shape == (0, 2)


def test_pixel_centres_become_pixel_indices_for_sam() -> None:
    assert to_sam_coords(torch.tensor([[0.5, 3.5]])).tolist() == [[0, 3]]
