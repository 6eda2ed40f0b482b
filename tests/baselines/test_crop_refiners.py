"""GrabCut and morphology on drawn disks, and what both share."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from phoenix_d2.baselines.grabcut import GrabCut
from phoenix_d2.baselines.morphology import Morphology
from phoenix_d2.structures import RefinementStatus

SIZE = (100, 140)
CLASSES = pytest.mark.parametrize("refiner", [GrabCut(), Morphology()], ids=["grabcut", "morphology"])


def disk(radius, *, center=(60, 50)):
    return cv2.circle(np.zeros(SIZE, np.uint8), center, radius, 1, cv2.FILLED).astype(bool)


def two_colours(mask):
    """A noisy picture, blue where the mask is and brown elsewhere."""
    noise = np.random.default_rng(0).integers(-12, 13, (*SIZE, 3))
    return (np.where(mask[..., None], (40, 80, 200), (120, 90, 40)) + noise).astype(np.uint8)


def iou(mask, other):
    return np.count_nonzero(mask & other) / np.count_nonzero(mask | other)


@pytest.mark.parametrize("max_side", [256, 60], ids=["whole", "reduced"])
@pytest.mark.parametrize("radius", [27, 33], ids=["eroded", "dilated"])
def test_grabcut_finds_the_edge_of_a_disk(radius, max_side):
    target, coarse = disk(30), disk(radius)
    result = GrabCut(max_side=max_side).refine(two_colours(target), coarse[None])
    assert iou(coarse, target) < 0.85 < 0.95 < iou(result.masks[0], target)
    assert result.change_trace[0] == pytest.approx([iou(coarse, result.masks[0])])


def test_grabcut_decides_the_rim_alone():
    # the second disk has the colour of the first, but lies outside its rim
    target = disk(15, center=(40, 50))
    image = two_colours(target | disk(6, center=(62, 50)))
    refined = GrabCut(rim=0.1).refine(image, target[None]).masks[0]
    assert iou(refined, target) > 0.95 and not refined[:, 56:].any()


def test_grabcut_of_a_mask_depends_on_nothing_else():
    target, other = disk(20, center=(40, 40)), disk(12, center=(100, 60))
    image, masks = two_colours(target | other), np.stack([disk(22, center=(40, 40)), disk(14, center=(100, 60))])
    together = GrabCut().refine(image, masks).masks
    cv2.setRNGSeed(7)
    alone = [GrabCut().refine(image, mask[None]).masks[0] for mask in masks]
    np.testing.assert_array_equal(together, alone)


def test_morphology_takes_a_spur_and_fills_a_hole():
    coarse = disk(30)
    coarse[49:52, 90:120] = True
    coarse[50:52, 60:62] = False
    refined = Morphology(kernel=0.15).refine(np.zeros((*SIZE, 3), np.uint8), coarse[None]).masks[0]
    assert refined[51, 61] and not refined[50, 100:].any()
    assert iou(refined, disk(30)) > 0.98


def test_morphology_leaves_what_the_image_border_cuts():
    half = np.zeros(SIZE, bool)
    half[:, :70] = True
    np.testing.assert_array_equal(Morphology().refine(np.zeros((*SIZE, 3), np.uint8), half[None]).masks[0], half)


@CLASSES
def test_masks_that_cannot_be_refined_stay(refiner):
    line, full = np.zeros(SIZE, bool), np.ones(SIZE, bool)
    line[50, 20] = True
    masks = np.stack([np.zeros(SIZE, bool), line, full, disk(30)])
    result = refiner.refine(two_colours(disk(30)), masks)
    np.testing.assert_array_equal(result.masks[:3], masks[:3])
    vanishes = RefinementStatus.KEPT_VANISHED if isinstance(refiner, Morphology) else RefinementStatus.REFINED
    refined = RefinementStatus.REFINED
    assert result.status.tolist() == [RefinementStatus.KEPT_EMPTY, vanishes, refined, refined]


@CLASSES
def test_the_result_has_arrays_and_no_predictions(refiner):
    masks = np.stack([disk(10), disk(20), np.zeros(SIZE, bool)])
    before = masks.copy()
    result = refiner.refine(two_colours(disk(20)), masks)
    np.testing.assert_array_equal(masks, before)
    assert result.masks.dtype == bool and result.masks.shape == masks.shape
    assert np.isnan([result.iou_predictions, result.coarse_iou_predictions, result.iou_trace[:, 0]]).all()
    assert result.low_res_logits.shape == (3, 0, 0) and result.change_trace.shape == (3, 1)
    assert len(refiner.refine(two_colours(disk(20)), masks[:0])) == 0


@CLASSES
def test_memory_layout_does_not_matter(refiner):
    image, masks = two_colours(disk(20)), np.stack([disk(18), disk(24)])
    expected = refiner.refine(image, masks).masks
    strided = np.asfortranarray(image[..., ::-1])[..., ::-1]
    np.testing.assert_array_equal(refiner.refine(strided, np.asfortranarray(masks)).masks, expected)


@CLASSES
def test_wrong_input_is_named(refiner):
    image, masks = two_colours(disk(20)), disk(20)[None]
    with pytest.raises(ValueError, match=r"RGB image \(H, W, 3\) uint8, got \(100, 140\) uint8.*read_image"):
        refiner.refine(image[..., 0], masks)
    with pytest.raises(ValueError, match=r"masks \(N, 100, 140\).*got \(1, 100, 140\) float32: threshold"):
        refiner.refine(image, masks.astype(np.float32))
    with pytest.raises(ValueError, match=r"got \(1, 90, 140\) bool"):
        refiner.refine(image, masks[:, :90])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GrabCut(rim=0), "rim 0 "),
        (lambda: GrabCut(iterations=0), "iterations 0 "),
        (lambda: GrabCut(max_side=0), "max_side 0 "),
        (lambda: Morphology(kernel=1), "kernel 1 "),
    ],
)
def test_parameters_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
