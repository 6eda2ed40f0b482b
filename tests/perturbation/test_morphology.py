"""Morphological noise."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from phoenix_d2.perturbation.morphology import (
    BoolMask,
    fill_contours,
    find_contours,
    perturb_mask,
    perturb_masks,
)
from phoenix_d2.structures import PerturbationOutcome


def ring(height: int, width: int) -> BoolMask:
    side = min(height, width)
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 2, height // 2), (side * 2 // 5, side // 4), 30, 0, 360, 1, cv2.FILLED)
    cv2.circle(mask, (width // 2, height // 2), side // 12, 0, cv2.FILLED)
    return mask.astype(bool)


def iou(a: BoolMask, b: BoolMask) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("size", [(32, 48), (128, 128), (480, 640)])
@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
def test_reaches_the_asked_iou_at_any_resolution(size: tuple[int, int], threshold: float) -> None:
    mask = ring(*size)
    reached = [
        iou(mask, perturb_mask(mask, iou_threshold=threshold, rng=np.random.default_rng(seed))) for seed in range(12)
    ]
    assert min(reached) >= threshold
    assert np.mean(reached) < threshold + 0.08


def test_noise_is_where_the_object_is() -> None:
    mask = np.zeros((200, 200), bool)
    mask[20:50, 20:50] = True
    noisy = perturb_mask(mask, iou_threshold=0.5, rng=np.random.default_rng(0))
    assert not noisy[70:, :].any() and not noisy[:, 70:].any()


def test_errs_both_ways_over_seeds() -> None:
    mask = ring(96, 96)
    noisy = [perturb_mask(mask, iou_threshold=0.6, rng=np.random.default_rng(seed)) for seed in range(12)]
    areas = np.array([n.sum() / mask.sum() for n in noisy])
    assert (areas > 1.1).any() and (areas < 0.9).any()


def test_seeded_and_input_untouched() -> None:
    mask = ring(64, 64)
    before = mask.copy()
    first, again, other = (perturb_mask(mask, iou_threshold=0.6, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(mask, before)


@pytest.mark.parametrize("seed", range(5))
def test_small_masks_never_vanish(seed: int) -> None:
    for pixels in [(slice(3, 4), slice(3, 4)), (slice(0, 2), slice(0, 2)), (slice(5, 6), slice(0, 16))]:
        mask = np.zeros((16, 16), bool)
        mask[pixels] = True
        assert perturb_mask(mask, iou_threshold=0.3, rng=np.random.default_rng(seed)).any()


def test_empty_stays_empty_and_a_full_mask_is_fine() -> None:
    rng = np.random.default_rng(0)
    assert not perturb_mask(np.zeros((8, 8), bool), iou_threshold=0.5, rng=rng).any()
    assert perturb_mask(np.ones((32, 32), bool), iou_threshold=0.5, rng=rng).mean() < 1


def test_threshold_one_changes_nothing() -> None:
    mask = ring(64, 64)
    assert np.array_equal(perturb_mask(mask, iou_threshold=1.0, rng=np.random.default_rng(0)), mask)


@pytest.mark.parametrize("threshold", [0.0, 1.5])
def test_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        perturb_mask(np.ones((4, 4), bool), iou_threshold=threshold, rng=np.random.default_rng(0))


def test_contours_there_and_back_keep_holes_islands_and_lines() -> None:
    mask = ring(64, 80).astype(np.uint8)
    mask[32, 40] = mask[2, 2] = 1
    mask[60, 5:50] = 1
    assert np.array_equal(fill_contours(find_contours(mask), mask.shape), mask)


def test_batch() -> None:
    masks = torch.from_numpy(np.stack([ring(64, 64), ~ring(64, 64), np.zeros((64, 64), bool)]))
    thresholds = torch.tensor([0.4, 0.8, 0.5])
    result = perturb_masks(masks, iou_thresholds=thresholds, generator=torch.Generator().manual_seed(0))
    again = perturb_masks(masks, iou_thresholds=thresholds, generator=torch.Generator().manual_seed(0))
    assert torch.equal(result.masks, again.masks)
    assert (result.iou >= thresholds).all() and (result.iou[:2] < thresholds[:2] + 0.15).all()
    assert (result.outcome == PerturbationOutcome.MORPHOLOGICAL).all() and (result.num_steps == 0).all()
    assert not result.masks[2].any() and result.iou[2] == 1


def test_batch_of_none() -> None:
    masks = torch.zeros(0, 8, 8, dtype=torch.bool)
    result = perturb_masks(masks, iou_thresholds=torch.zeros(0), generator=torch.Generator())
    assert result.masks.shape == (0, 8, 8)
