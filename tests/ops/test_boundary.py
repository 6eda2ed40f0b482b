"""Boundary bands and Boundary IoU."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from phoenix_d2.ops.boundary import CroppedMask, band_width, boundary_band, boundary_iou

# a 100 x 100 image has a diagonal of 141.4 pixels: at 2 % the band is 3 pixels wide
SIZE = 100


def square(x0, y0, side, size=SIZE):
    mask = np.zeros((size, size), dtype=bool)
    mask[y0 : y0 + side, x0 : x0 + side] = True
    return mask


def eroded_step_by_step(mask, depth):
    """The definition: 3 x 3 erosions of the whole image with a ring of background around it."""
    padded = np.pad(mask, 1).astype(np.uint8)
    return cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=depth)[1:-1, 1:-1].astype(bool)


def test_band_width():
    assert band_width(480, 640) == 16
    assert band_width(480, 640, dilation_ratio=0.01) == 8
    assert band_width(10, 10) == 1, "never less than a pixel"
    assert band_width(75, 100) == 2, "2.5 goes to the even side, as in the reference code"


def test_band_of_a_square_is_its_ring():
    band = boundary_band(square(10, 10, 40))
    np.testing.assert_array_equal(band, square(10, 10, 40) & ~square(13, 13, 34))
    assert band.sum() == 40 * 40 - 34 * 34


def test_the_image_border_is_an_edge():
    assert boundary_band(np.ones((SIZE, SIZE), dtype=bool)).sum() == 100 * 100 - 94 * 94
    np.testing.assert_array_equal(boundary_band(square(0, 0, 40)), square(0, 0, 40) & ~square(3, 3, 34))


def test_a_hole_has_an_edge():
    band = boundary_band(square(10, 10, 60) & ~square(30, 30, 20))
    assert band.sum() == (60**2 - 54**2) + (26**2 - 20**2)


@pytest.mark.parametrize(("side", "is_whole"), [(1, True), (6, True), (7, False)])
def test_the_band_of_a_thin_mask_is_the_mask(side, is_whole):
    mask = square(20, 20, side)
    assert np.array_equal(boundary_band(mask), mask) == is_whole


@pytest.mark.parametrize("dilation_ratio", [0.005, 0.02, 0.05])
def test_one_wide_box_on_the_crop_equals_small_steps_on_the_image(dilation_ratio):
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = rng.integers(1, 160, size=2)
        blob = cv2.GaussianBlur(rng.random((height, width)), (0, 0), 6.0)
        mask = blob > np.quantile(blob, rng.random())
        before = mask.copy()
        depth = band_width(height, width, dilation_ratio=dilation_ratio)
        expected = mask & ~eroded_step_by_step(mask, depth)
        np.testing.assert_array_equal(boundary_band(mask, dilation_ratio=dilation_ratio), expected)
        np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_boundary_iou_of_shifted_squares(shift):
    """Worked out by hand for a square of 40 pixels, a band of 3 and a shift of s <= 3 to the right.

    Each band has 40 * 40 - 34 * 34 = 444 pixels. The squares share (40 - s) * 40 pixels, of which the
    (34 + s) * 34 of the two cores together are in at most one band: 444 - 74 s remain.
    """
    mask, shifted = square(10, 10, 40), square(10 + shift, 10, 40)
    intersection = 444 - 74 * shift
    assert boundary_iou(mask, shifted) == pytest.approx(intersection / (2 * 444 - intersection), abs=1e-12)
    assert boundary_iou(mask, shifted) == boundary_iou(shifted, mask)


def test_boundary_iou_is_that_of_the_bands():
    rng = np.random.default_rng(1)
    for _ in range(10):
        blobs = [cv2.GaussianBlur(rng.random((90, 120)), (0, 0), 6.0) for _ in range(2)]
        masks = [blob > np.quantile(blob, 0.7) for blob in blobs]
        first, second = (boundary_band(mask, dilation_ratio=0.03) for mask in masks)
        expected = (first & second).sum() / (first | second).sum()
        assert boundary_iou(*masks, dilation_ratio=0.03) == pytest.approx(expected, abs=1e-12)


def test_empty_masks():
    empty = np.zeros((SIZE, SIZE), dtype=bool)
    assert not boundary_band(empty).any()
    assert boundary_iou(empty, empty) == 1.0
    assert boundary_iou(empty, square(10, 10, 40)) == 0.0


def test_masks_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(100, 100\) and \(50, 50\).*Resize"):
        boundary_iou(square(10, 10, 20), square(10, 10, 20, size=50))


def test_crops_overlap_as_the_masks_do():
    rng = np.random.default_rng(2)
    for _ in range(100):
        # rectangles that lie apart, within one another, or across, and some that are empty
        masks = np.zeros((2, 12, 16), dtype=bool)
        for mask in masks:
            y, x = rng.integers(0, (12, 16))
            mask[y : y + rng.integers(0, 9), x : x + rng.integers(0, 9)] = True
        union = (masks[0] | masks[1]).sum()
        expected = (masks[0] & masks[1]).sum() / union if union else 1.0
        assert CroppedMask.of(masks[0]).iou(CroppedMask.of(masks[1])) == expected


def test_the_work_is_done_in_the_window():
    mask = square(10, 20, 40)
    crop = CroppedMask.of(mask)
    assert (crop.y, crop.x, crop.pixels.shape) == (20, 10, (40, 40))
    assert crop.pixels.all() and mask[crop.window].all()
    assert CroppedMask.of(mask & False).pixels.shape == (0, 0)
