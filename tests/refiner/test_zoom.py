"""Windows around masks: which masks get one, and that all of them fits into it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.structures import Prompts, RefinementStatus
from tests.refiner.scenes import image_of, rectangles, statuses


def test_small_masks_are_zoomed_or_kept(refiner: MaskRefiner, asked: list[Prompts], encoded: list[Tensor]) -> None:
    # 4 x 5 of 16 pixels a low-resolution pixel
    masks = rectangles((96, 128), (60, 41, 65, 45))
    kept = refiner.refine(image_of(96, 128), masks, options=RefineOptions(zoom_small=False))
    assert statuses(kept.status) == [RefinementStatus.KEPT_SMALL]
    assert kept.masks.equal(masks) and kept.iou_predictions.tolist() == [0.0]
    assert not asked and not encoded

    zoomed = refiner.refine(image_of(96, 128), masks, options=RefineOptions(zoom_small=True))
    assert statuses(zoomed.status) == [RefinementStatus.REFINED]
    assert zoomed.masks.equal(masks), "10 pixels fill the frame: nothing is lost on the way"
    assert [len(batch) for batch in encoded] == [1]


def test_the_limit_of_small_is_16_low_resolution_pixels(refiner: MaskRefiner, asked: list[Prompts]) -> None:
    options = RefineOptions(num_iters=1, zoom_small=False)
    masks = rectangles((128, 128), (32, 32, 48, 48), (32, 32, 48, 47))
    result = refiner.refine(image_of(128, 128), masks, options=options)
    assert statuses(result.status) == [RefinementStatus.REFINED, RefinementStatus.KEPT_SMALL]


def test_zoom_below_gives_masks_windows_of_their_own(refiner: MaskRefiner, encoded: list[Tensor]) -> None:
    masks = rectangles((96, 128), (20, 20, 50, 50), (0, 0, 100, 90))
    options = RefineOptions(num_iters=1, zoom_below=0.5)
    refiner.refine(image_of(96, 128), masks, options=options)
    assert len(encoded) == 2, "the first in a window of 60 of 128 pixels, the second in the image"


def test_a_window_that_is_the_whole_image_shares_its_embedding(refiner: MaskRefiner, encoded: list[Tensor]) -> None:
    masks = rectangles((40, 40), (18, 18, 22, 21), (5, 5, 35, 35))
    options = RefineOptions(num_iters=1, zoom_context=20.0)
    refiner.refine(image_of(40, 40), masks, options=options)
    assert [len(batch) for batch in encoded] == [1]


@pytest.mark.parametrize("box", [(0, 0, 6, 3), (122, 90, 128, 96), (0, 93, 2, 96), (60, 40, 61, 41), (0, 48, 128, 56)])
def test_windows_hold_their_masks_at_any_border(echo_refiner: MaskRefiner, box: tuple[int, int, int, int]) -> None:
    masks = rectangles((96, 128), box)
    result = echo_refiner.refine(image_of(96, 128), masks, options=RefineOptions(num_iters=1, zoom_below=0.9))
    assert statuses(result.status) == [RefinementStatus.REFINED]
    assert result.masks.equal(masks)


def test_growing_boxes_get_the_embeddings_of_their_window(refiner: MaskRefiner, device: str) -> None:
    refiner.to(device).prompter = CoarseMaskPrompter(box_growth=0.5)
    masks = rectangles((96, 128), (60, 41, 65, 45), (20, 20, 80, 80), (40, 10, 44, 14))
    result = refiner.refine(image_of(96, 128), masks)
    assert len(result) == 3 and result.masks.device.type == device


def test_boxes_grow_by_sams_own_channels(refiner: MaskRefiner) -> None:
    """An encoder's fine maps lie behind them, and say nothing of what is alike."""
    refiner.prompter = CoarseMaskPrompter(box_growth=0.5)
    generator = torch.Generator().manual_seed(0)
    alike = torch.ones(1, 256, 8, 8)
    details = 100 * torch.randn(1, 64, 8, 8, generator=generator)
    masks = refiner.frame((128, 128)).masks_to_low_res(rectangles((128, 128), (40, 40, 80, 80)))
    plain, grown = (
        refiner.derive_prompts(masks, embeddings, None) for embeddings in (alike, torch.cat([alike, details], dim=1))
    )
    assert grown.point_coords.equal(plain.point_coords)
    tight = CoarseMaskPrompter()(masks, stride=refiner.stride).point_coords
    assert not grown.point_coords.equal(tight), "all around is alike"
