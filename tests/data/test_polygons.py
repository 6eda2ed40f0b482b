"""Masks as COCO polygons, read back by pycocotools."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from phoenix_d2.data.mask_json import decode_segmentation, segmentation_area
from phoenix_d2.data.polygons import mask_to_polygons


def decoded(polygons, mask):
    return decode_segmentation(polygons, *mask.shape)


def iou(polygons, mask):
    other = decoded(polygons, mask)
    return (mask & other).sum() / (mask | other).sum()


def num_points(polygons):
    return sum(map(len, polygons)) / 2


def disc(size, center, radius):
    y, x = np.indices(size)
    return (x - center[0]) ** 2 + (y - center[1]) ** 2 < radius**2


def masks_of_all_kinds():
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = rng.integers(1, 40, 2)
        noise = rng.random((height, width))
        yield noise < rng.random()
        yield cv2.GaussianBlur(noise, (0, 0), 2) > 0.5


def test_unsimplified_outlines_are_exact():
    masks = [mask for mask in masks_of_all_kinds() if mask.any()]
    assert len(masks) > 150
    for mask in masks:
        polygons = mask_to_polygons(mask, tolerance=0)
        assert np.array_equal(decoded(polygons, mask), mask)
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
        assert (points >= 0).all() and (points <= mask.shape[::-1]).all()


@pytest.mark.parametrize("tolerance", [0.5, 1, 3, 1000])
def test_simplified_outlines_lose_no_more_than_they_may(tolerance):
    for mask in masks_of_all_kinds():
        if mask.any():
            assert iou(mask_to_polygons(mask, tolerance=tolerance, min_iou=0.9), mask) >= 0.9


def test_outlines_run_on_the_edges_of_pixels():
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9] = True
    (polygon,) = mask_to_polygons(mask, tolerance=1)
    x, y = np.reshape(polygon, (-1, 2)).T
    assert (x.min(), y.min(), x.max(), y.max()) == (3, 2, 9, 5)
    assert all(isinstance(value, float) for value in polygon)


def test_a_coarser_tolerance_takes_fewer_points():
    mask = disc((100, 100), (50, 50), 40)
    fine, coarse = (mask_to_polygons(mask, tolerance=tolerance, min_iou=0.9) for tolerance in (0.25, 2))
    assert num_points(coarse) < num_points(fine) / 3
    # the same tolerance, but not at that price
    dear = mask_to_polygons(mask, tolerance=2, min_iou=0.99)
    assert num_points(coarse) < num_points(dear) and iou(coarse, mask) < 0.99 <= iou(dear, mask)


def test_every_part_is_a_polygon_and_every_hole_is_cut_out_of_its_part():
    mask = disc((80, 120), (40, 40), 35) & ~disc((80, 120), (30, 40), 8) & ~disc((80, 120), (52, 44), 10)
    # an island in a hole, and a part of its own
    mask |= disc((80, 120), (52, 44), 4) | disc((80, 120), (95, 40), 15)
    polygons = mask_to_polygons(mask, tolerance=0.5)
    assert len(polygons) == 3
    assert iou(polygons, mask) >= 0.99
    assert not decoded(polygons, mask)[40, 30]
    assert segmentation_area(polygons) == pytest.approx(mask.sum(), rel=0.02)
    # the even-odd rule of another reader
    drawn = np.zeros(mask.shape, np.uint8)
    cv2.fillPoly(drawn, [np.round(np.reshape(p, (-1, 2)) * 16 - 8).astype(np.int32) for p in polygons], 1, shift=4)
    assert (drawn.astype(bool) & mask).sum() / (drawn.astype(bool) | mask).sum() > 0.9


def test_what_is_thinner_than_the_tolerance_vanishes_unless_it_counts():
    mask = disc((80, 80), (40, 40), 30)
    mask[0, 0] = True
    mask[40, 40] = False
    (polygon,) = mask_to_polygons(mask, tolerance=1, min_iou=0.9)
    assert decoded([polygon], mask)[40, 40]
    only = np.zeros((80, 80), bool)
    only[5, 7] = True
    assert np.array_equal(decoded(mask_to_polygons(only, tolerance=5), only), only)


def test_masks_of_decoded_rle_lie_column_by_column():
    mask = disc((30, 20), (8, 12), 7)
    assert mask_to_polygons(np.asfortranarray(mask)) == mask_to_polygons(mask)
