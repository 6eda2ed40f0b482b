"""Corners for SAM, and boxes that grow."""

from __future__ import annotations

import torch
from torch import Tensor

from phoenix_d2.ops.masks import masks_to_boxes
from phoenix_d2.prompting.boxes import box_corners, grow_boxes

SIDE, GRID = 64, 16


def scene() -> tuple[Tensor, Tensor]:
    """Two masks and their image: the first lies amid its like, the second is all there is of its kind."""
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    masks[0, 4:24, 4:14] = True
    masks[1, 32:56, 32:56] = True
    kinds = torch.zeros(1, 2, GRID, GRID)
    kinds[0, 1, 8:14, 8:14] = 1
    kinds[0, 0] = 1 - kinds[0, 1]
    return masks, kinds


def grow(masks: Tensor, image_embeddings: Tensor, **options: object) -> Tensor:
    arguments = {"margin": 0.5, "max_step": 10.0, **options}
    return grow_boxes(masks_to_boxes(masks).float(), masks, image_embeddings=image_embeddings, **arguments)


def test_corners_are_the_first_and_the_last_pixel() -> None:
    corners = box_corners(torch.tensor([[8.0, 12.0, 40.0, 20.0]]))
    assert corners.tolist() == [[[8, 12], [39, 19]]]


def test_only_the_mask_whose_surroundings_resemble_it_grows() -> None:
    masks, embeddings = scene()
    torch.testing.assert_close(grow(masks, embeddings), torch.tensor([[3.0, 2, 15, 26], [32, 32, 56, 56]]))


def test_growth_does_not_depend_on_the_batch() -> None:
    masks, embeddings = scene()
    together = grow(masks, embeddings)
    torch.testing.assert_close(grow(masks.flip(0), embeddings), together.flip(0))
    torch.testing.assert_close(grow(masks[:1], embeddings), together[:1])
    torch.testing.assert_close(grow(masks, embeddings.repeat(2, 1, 1, 1)), together)


def test_each_side_moves_for_itself() -> None:
    masks, embeddings = scene()
    # the second kind begins just below the first mask
    embeddings[0, :, 6:] = torch.tensor([0.0, 1.0])[:, None, None]
    torch.testing.assert_close(grow(masks[:1], embeddings), torch.tensor([[3.0, 2, 15, 24]]))


def test_step_is_bounded() -> None:
    masks, embeddings = scene()
    torch.testing.assert_close(grow(masks[:1], embeddings, max_step=0.5), torch.tensor([[3.5, 3.5, 14.5, 24.5]]))


def test_sides_stay_inside_the_image() -> None:
    masks, embeddings = scene()
    masks[0, :, 4:14] = True
    torch.testing.assert_close(grow(masks[:1], embeddings), torch.tensor([[3.0, 0, 15, SIDE]]))
    masks, _ = scene()
    valid = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    valid[:, :25] = True
    torch.testing.assert_close(grow(masks[:1], embeddings, valid=valid), torch.tensor([[3.0, 2, 15, 24]]))
