"""Prompts drawn as a user would give them."""

from __future__ import annotations

import torch
from torch import Tensor

from phoenix_d2.prompting.boxes import box_corners
from phoenix_d2.prompting.simulated import MAX_CLICKS, jittered_boxes, simulate_prompts
from phoenix_d2.structures import PointLabel

STRIDE = 4


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def targets(n: int) -> Tensor:
    masks = torch.zeros(n, 32, 32, dtype=torch.bool)
    masks[:, 8:20, 4:28] = True
    masks[:, 12:16, 10:20] = False
    return masks


def test_points_lie_on_the_target_and_boxes_around_it() -> None:
    masks = targets(200)
    prompts = simulate_prompts(masks, stride=STRIDE, generator=generator())
    assert prompts.mask_logits is None
    clicked = prompts.point_labels == PointLabel.FOREGROUND
    boxed = (prompts.point_labels == PointLabel.BOX_TOP_LEFT).any(1)
    # a box has no points beside it, and about half of the prompts are boxes
    assert (clicked.any(1) ^ boxed).all() and 0.4 < boxed.float().mean() < 0.6
    counts = clicked.sum(1)[~boxed]
    assert sorted(set(counts.tolist())) == list(range(1, MAX_CLICKS + 1))
    rows, columns = ((prompts.point_coords[clicked] + 0.5) / STRIDE).long().T.flip(0)
    assert masks[0][rows, columns].all()


def test_boxes_move_by_a_tenth_of_their_sides() -> None:
    corners = jittered_boxes(targets(500), stride=STRIDE, generator=generator())
    moves = (corners - box_corners(torch.tensor([[4.0, 8, 28, 20]]) * STRIDE)).flatten(1)
    assert moves.abs().max() <= 20
    torch.testing.assert_close(moves.std(0), torch.tensor([9.6, 4.8, 9.6, 4.8]), atol=1.0, rtol=0.0)


def test_what_is_drawn_depends_on_the_generator_alone() -> None:
    first, again = (simulate_prompts(targets(5), stride=STRIDE, generator=generator()) for _ in range(2))
    assert first.point_coords.equal(again.point_coords) and first.point_labels.equal(again.point_labels)
