"""Measures and boxes of masks."""

from __future__ import annotations

import torch

from phoenix_d2.ops.masks import mask_iou, masks_to_boxes


def boxes_to_masks(boxes: list[list[int]], height: int = 7, width: int = 9) -> torch.Tensor:
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def test_iou_of_known_rectangles() -> None:
    ours = boxes_to_masks([[0, 0, 4, 4], [0, 0, 2, 2], [0, 0, 0, 0], [1, 1, 3, 3]])
    theirs = boxes_to_masks([[2, 0, 6, 4], [4, 4, 6, 6], [0, 0, 0, 0], [1, 1, 3, 3]])
    iou = mask_iou(ours, theirs)
    assert iou.dtype == torch.float32
    torch.testing.assert_close(iou, torch.tensor([8 / 24, 0.0, 1.0, 1.0]))


def test_iou_counts_valid_pixels_alone() -> None:
    ours, theirs = boxes_to_masks([[0, 0, 4, 4]]), boxes_to_masks([[2, 0, 6, 4]])
    left, right = boxes_to_masks([[0, 0, 4, 7]]), boxes_to_masks([[7, 0, 9, 7]])
    assert mask_iou(ours, theirs, left).item() == 0.5
    assert mask_iou(ours, theirs, right).item() == 1.0, "nothing of either is left"


def test_iou_is_symmetric_and_takes_no_masks() -> None:
    masks = torch.rand(2, 5, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    assert mask_iou(masks[0], masks[1]).equal(mask_iou(masks[1], masks[0]))
    assert mask_iou(masks[0, :0], masks[1, :0]).shape == (0,)


def test_boxes_are_tight_with_exclusive_maxima() -> None:
    boxes = [[0, 0, 9, 7], [3, 2, 4, 3], [8, 6, 9, 7], [0, 0, 0, 0]]
    assert masks_to_boxes(boxes_to_masks(boxes)).tolist() == boxes


def test_boxes_hold_all_parts_of_a_mask() -> None:
    masks = boxes_to_masks([[1, 5, 2, 6]]) | boxes_to_masks([[6, 2, 7, 3]])
    assert masks_to_boxes(masks).tolist() == [[1, 2, 7, 6]]
    assert masks_to_boxes(masks[:0]).shape == (0, 4)
