"""Masks without an outline."""

from __future__ import annotations

import torch

from phoenix_d2.ops.masks import mask_iou, masks_to_boxes
from phoenix_d2.perturbation.shapeless import shapeless_masks


def stars(n: int) -> torch.Tensor:
    """(n, 96, 96) crosses: much outline for little area."""
    masks = torch.zeros(n, 96, 96, dtype=torch.bool)
    masks[:, 20:76, 42:54] = True
    masks[:, 42:54, 20:76] = True
    return masks


def test_they_cover_the_object_without_its_outline() -> None:
    masks = stars(64)
    coarse = shapeless_masks(masks, generator=torch.Generator().manual_seed(0))
    assert coarse.shape == masks.shape and coarse.dtype == torch.bool
    iou = mask_iou(coarse, masks)
    assert 0.3 < iou.mean() < 0.8
    assert (iou < 0.95).float().mean() > 0.9
    # centred on the object
    boxes = masks_to_boxes(coarse).float()
    assert ((boxes[:, :2] + boxes[:, 2:]) / 2 - 48).abs().max() < 8


def test_about_half_are_boxes() -> None:
    coarse = shapeless_masks(stars(200), generator=torch.Generator().manual_seed(1))
    boxes = masks_to_boxes(coarse)
    filled = (boxes[:, 2:] - boxes[:, :2]).prod(1) == coarse.flatten(1).sum(1)
    assert 0.4 < filled.float().mean() < 0.6


def test_seeded_runs_repeat_and_differ_by_seed() -> None:
    masks = stars(8)
    first, again, other = (shapeless_masks(masks, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_pixel_stays_something_and_nothing_stays_nothing() -> None:
    masks = torch.zeros(40, 32, 32, dtype=torch.bool)
    masks[:39, 5, 7] = True
    coarse = shapeless_masks(masks, generator=torch.Generator().manual_seed(0))
    assert coarse[:39].flatten(1).any(1).all()
    assert not coarse[39].any()
    assert shapeless_masks(masks[:0], generator=torch.Generator()).shape == (0, 32, 32)
