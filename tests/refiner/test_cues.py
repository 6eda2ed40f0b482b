"""Points and boxes that a user gives."""

from __future__ import annotations

import torch

from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.structures import PointLabel, Prompts
from tests.refiner.scenes import image_of, rectangles


def test_user_points_and_boxes_reach_every_pass(refiner: MaskRefiner, asked: list[Prompts], device: str) -> None:
    masks = rectangles((96, 128), (20, 20, 80, 80), (30, 10, 90, 60))
    points = torch.tensor([[[30.0, 40.0], [5.0, 6.0]], [[50.0, 20.0], [0.0, 0.0]]])
    labels = torch.tensor([[1, 0], [1, -1]])
    boxes = torch.tensor([[16.0, 18.0, 85.0, 84.0], [28.0, 8.0, 92.0, 66.0]])
    refiner.to(device).refine(image_of(96, 128), masks, points=points, point_labels=labels, boxes=boxes)
    assert len(asked) == 2
    corners = torch.tensor([[0.0, 0.0], [-1.0, -1.0]])
    for prompts in asked:
        # 128 pixels of the image are the 128 of the model input
        torch.testing.assert_close(prompts.point_coords[:, :2].cpu(), points - 0.5)
        torch.testing.assert_close(prompts.point_coords[:, 2:].cpu(), boxes.view(2, 2, 2) + corners)
        assert prompts.point_labels.tolist() == [[1, 0, 2, 3], [1, -1, 2, 3]]


def test_points_are_foreground_unless_labelled(refiner: MaskRefiner, asked: list[Prompts]) -> None:
    masks = rectangles((96, 128), (20, 20, 80, 80))
    refiner.refine(image_of(96, 128), masks, points=torch.tensor([[[30, 40], [50, 60], [70, 70]]]))
    assert asked[0].point_labels.tolist() == [[1, 1, 1, 2, 3]]


def test_boxes_of_whole_numbers_are_those_of_floats(refiner: MaskRefiner, asked: list[Prompts]) -> None:
    masks, boxes = rectangles((100, 90), (20, 20, 80, 80)), torch.tensor([[16, 18, 85, 84]])
    for given in (boxes, boxes.float(), boxes.double()):
        refiner.refine(image_of(100, 90), masks, boxes=given, options=RefineOptions(num_iters=1))
    assert asked[0].point_coords.equal(asked[1].point_coords)
    assert asked[0].point_coords.equal(asked[2].point_coords)


def test_cues_far_from_a_small_mask_lie_inside_its_window(refiner: MaskRefiner, asked: list[Prompts]) -> None:
    masks = rectangles((400, 400), (100, 100, 108, 108))
    cues = {
        "points": torch.tensor([[[190.0, 30.0], [390.0, 390.0]]]),
        "point_labels": torch.tensor([[0, int(PointLabel.PADDING)]]),
        "boxes": torch.tensor([[20.0, 60.0, 130.0, 120.0]]),
    }
    refiner.refine(image_of(400, 400), masks, **cues)
    used = asked[0].point_coords[asked[0].point_labels != PointLabel.PADDING]
    assert len(used) == 3
    assert (used > 0).all() and (used < 128).all()
    # 340 pixels: twice the extent of all but the padding point
    scale = 128 / 340
    torch.testing.assert_close(used[2] - used[1], torch.tensor([110.0, 60.0]) * scale - 1)
