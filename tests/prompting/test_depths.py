"""Depth maps against brute force, and the borders of either metric."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from phoenix_d2.ops.masks import masks_to_boxes
from phoenix_d2.prompting.depths import chamfer_depths, chamfer_distance, euclidean_depths


def random_blobs(count: int = 3, side: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(count, side, side, generator=generator) < 0.6
    masks[:, :3] = False
    return masks


def offsets_to(targets: Tensor) -> tuple[Tensor, Tensor]:
    """(h, w, T) absolute row and column offsets of every pixel to the set pixels of (h, w) `targets`."""
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in targets.shape), indexing="ij")
    target_rows, target_columns = targets.nonzero().unbind(1)
    return (rows[..., None] - target_rows).abs(), (columns[..., None] - target_columns).abs()


def test_euclidean_foreground_is_exact_and_counts_beyond_the_frame_as_background() -> None:
    masks = random_blobs()
    depths = euclidean_depths(masks, masks_to_boxes(masks)).foreground
    for mask, depth in zip(masks, depths, strict=True):
        ringed = torch.nn.functional.pad(mask, (1, 1, 1, 1))
        dy, dx = offsets_to(~ringed)
        torch.testing.assert_close(depth, (dy**2 + dx**2).float().sqrt().amin(2)[1:-1, 1:-1])


def test_euclidean_background_is_exact_in_the_box_and_zero_outside() -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, 2:14, 4:6] = True
    masks[0, 12:14, 4:13] = True
    depths = euclidean_depths(masks, masks_to_boxes(masks)).background[0]
    dy, dx = offsets_to(masks[0])
    expected = (dy**2 + dx**2).float().sqrt().amin(2)
    torch.testing.assert_close(depths[2:14, 4:13], expected[2:14, 4:13])
    assert depths.sum() == depths[2:14, 4:13].sum() > 0


def test_equal_euclidean_depths_are_equal_to_the_last_bit() -> None:
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    masks = torch.stack([(x - 64) ** 2 + (y - 64) ** 2 < radius**2 for radius in range(40, 60)])
    depths = euclidean_depths(masks, masks_to_boxes(masks)).foreground
    assert torch.equal(depths, depths.double().square().round().sqrt().float())


def test_empty_masks_have_no_depth() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[1, 3, 3] = True
    foreground, background = euclidean_depths(masks, masks_to_boxes(masks))
    assert foreground.sum() == 1 and foreground[1, 3, 3] == 1
    assert not background.any()


def test_chamfer_distance_is_the_shortest_path_of_straight_and_diagonal_steps() -> None:
    sources = torch.rand(2, 17, 23, generator=torch.Generator().manual_seed(1)) < 0.02
    for source, distance in zip(sources, chamfer_distance(sources), strict=True):
        dy, dx = offsets_to(source)
        expected = (torch.maximum(dy, dx) + (math.sqrt(2) - 1) * torch.minimum(dy, dx)).amin(2)
        torch.testing.assert_close(distance, expected, rtol=0, atol=1e-4)


def test_chamfer_distance_without_sources_is_finite_and_the_same_everywhere() -> None:
    assert (chamfer_distance(torch.zeros(1, 5, 7, dtype=torch.bool)) == 12).all()


def test_chamfer_does_not_take_the_border_for_background() -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, :, :6] = True
    boxes = masks_to_boxes(masks)
    assert chamfer_depths(masks, boxes).foreground[0, 8].tolist()[:6] == [6, 5, 4, 3, 2, 1]
    assert euclidean_depths(masks, boxes).foreground[0, 8].tolist()[:6] == [1, 2, 3, 3, 2, 1]


def test_chamfer_does_not_take_padding_for_background() -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, 4:10, 3:13] = True
    valid = torch.zeros(1, 16, 16, dtype=torch.bool)
    valid[:, :10] = True
    depths = chamfer_depths(masks, masks_to_boxes(masks), valid=valid).foreground[0]
    assert depths[4:10, 7].tolist() == pytest.approx([1, 2, 3, 4, 5, 5], abs=0.2)


def test_chamfer_background_leaves_out_the_last_row_and_column_of_the_box() -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, 2, 2:12] = True
    masks[0, 2:12, 2] = True
    boxes = masks_to_boxes(masks)
    half_open, whole = chamfer_depths(masks, boxes).background[0], euclidean_depths(masks, boxes).background[0]
    assert not half_open[11].any() and not half_open[:, 11].any()
    assert half_open[10, 10] == 8 and whole[11, 11] == 9
