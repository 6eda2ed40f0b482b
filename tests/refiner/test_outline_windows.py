"""Windows along the outline: what they see, mend and leave alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.structures import RefinementStatus
from tests.gates import gate_of
from tests.refiner.scenes import SIDE, image_of, rectangles, statuses


def windowed(**changes: Any) -> RefineOptions:
    """Windows whose low-resolution pixels are the image's."""
    return RefineOptions(**{"num_iters": 1, "window_scale": SIDE / 128} | changes)


def test_windows_that_change_nothing_leave_no_trace(echo_refiner: MaskRefiner) -> None:
    image, masks = image_of(96, 128), rectangles((96, 128), (12, 20, 100, 88))
    # a low-resolution pixel of the whole image is 4 x 4 of its own, and the mask keeps to that grid
    plain = echo_refiner.refine(image, masks, options=RefineOptions(num_iters=1), keep_logits=True)
    result = echo_refiner.refine(image, masks, options=windowed(), keep_logits=True)
    assert result.masks.equal(plain.masks) and result.low_res_logits.equal(plain.low_res_logits)


def test_windows_lie_along_the_outline(echo_refiner: MaskRefiner, encoded: list[Tensor]) -> None:
    image, masks = image_of(256, 256), rectangles((256, 256), (0, 0, 24, 256))
    echo_refiner.refine(image, masks, options=windowed(chunk_size=4))
    # of fifteen columns of windows, two see the outline
    assert [len(batch) for batch in encoded] == [1, *[4] * 7, 2]


def test_windows_mend_what_the_whole_image_cannot_show(echo_refiner: MaskRefiner) -> None:
    # the pass over the whole image turns one pixel in four into a blur; what windows see, they keep
    masks = rectangles((128, 128), (8, 8, 120, 60))
    masks[0, 60:100, 50:53] = True
    image = image_of(128, 128)
    kept = replace(windowed(), gate="fixed", gate_min_iou=1.0)
    assert echo_refiner.refine(image, masks, options=kept).masks.equal(masks)
    coarse = echo_refiner.refine(image, masks, options=RefineOptions(num_iters=1)).masks
    fine = echo_refiner.refine(image, masks, options=windowed()).masks
    assert mask_iou(fine, coarse).item() > 0.9


def test_a_mask_refined_on_windows_does_not_depend_on_others(refiner: MaskRefiner) -> None:
    image, masks = image_of(160, 200), rectangles((160, 200), (10, 10, 150, 140), (60, 41, 65, 45), (30, 5, 190, 100))
    options = windowed(chunk_size=3, window_scale=0.5)
    together = refiner.refine(image, masks, options=options)
    assert not together.masks.equal(refiner.refine(image, masks, options=replace(options, window_scale=0.0)).masks)
    for i in range(3):
        alone = refiner.refine(image, masks[i, None], options=options)
        assert mask_iou(alone.masks, together.masks[i, None]).item() > 0.999


def test_the_gate_judges_windows(refiner: MaskRefiner, device: str) -> None:
    image, masks = image_of(96, 128), rectangles((96, 128), (12, 20, 100, 88))
    refiner.to(device).gate = gate_of(-0.1)
    result = refiner.refine(image, masks, options=windowed())
    assert result.masks.cpu().equal(masks) and statuses(result.status) == [RefinementStatus.KEPT_REJECTED]


def test_a_small_mask_needs_no_windows(refiner: MaskRefiner, encoded: list[Tensor]) -> None:
    refiner.refine(image_of(96, 128), rectangles((96, 128), (60, 41, 65, 45)), options=windowed(window_scale=1.0))
    assert len(encoded) == 1
