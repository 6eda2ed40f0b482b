"""Refined masks in `Instances`."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.structures import Boxes, Instances

from phoenix_d2.modeling.refine_outputs import image_in_output_frame, refine_instances
from phoenix_d2.structures import RefinementStatus

SIZE = (40, 60)
IMAGE = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0)) * 255


def detections(*, dtype=torch.bool):
    """A rectangle, an empty mask and another rectangle, boxes a little too large."""
    instances = Instances(SIZE)
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    masks[0, 10:30, 5:25] = True
    masks[2, 5:35, 30:50] = True
    instances.scores = torch.tensor([0.9, 0.5, 0.2])
    instances.pred_masks = masks.to(dtype)
    instances.pred_classes = torch.tensor([3, 1, 2])
    instances.pred_boxes = Boxes(torch.tensor([[4.5, 9.5, 26, 31], [1, 2, 3, 4], [29, 4, 51, 36]]))
    return instances


def fake_refiner(ious, status=(0, 1, 0), coarse_ious=(math.nan, math.nan, math.nan)):
    """Moves masks one pixel down."""

    def refine(image, masks):
        assert masks.dtype == torch.bool and image.shape[1:] == masks.shape[1:]
        return SimpleNamespace(
            masks=masks.roll(1, dims=1),
            iou_predictions=torch.tensor(ious),
            coarse_iou_predictions=torch.tensor(coarse_ious),
            status=torch.tensor(status),
        )

    return SimpleNamespace(refine=refine)


def test_only_masks_change(refiner):
    coarse = detections()
    before = coarse.pred_masks.clone()
    refined = refine_instances(refiner, IMAGE, coarse)
    assert list(refined.get_fields()) == ["scores", "pred_masks", "pred_classes", "pred_boxes"]
    assert len(refined) == 3 and refined.image_size == SIZE
    for name in ("scores", "pred_classes"):
        assert refined.get(name).equal(coarse.get(name))
    assert refined.pred_boxes.tensor.equal(coarse.pred_boxes.tensor)
    changed = (refined.pred_masks != coarse.pred_masks).flatten(1).any(1)
    assert changed.tolist() == [True, False, True], "an empty mask stays empty"
    assert coarse.pred_masks.equal(before), "the detector's own instances are not touched"


def test_masks_are_the_refiners(refiner):
    expected = refiner.refine(IMAGE, detections().pred_masks).masks
    assert refine_instances(refiner, IMAGE, detections()).pred_masks.equal(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_masks_keep_their_type(refiner, dtype):
    expected = refine_instances(refiner, IMAGE, detections()).pred_masks
    refined = refine_instances(refiner, IMAGE, detections(dtype=dtype)).pred_masks
    assert refined.dtype == dtype and refined.equal(expected.to(dtype))


def test_boxes_follow_masks_if_asked():
    refined = refine_instances(fake_refiner([0.5, 0.0, 0.5]), IMAGE, detections(), update_boxes=True)
    expected = [[5, 11, 25, 31], [1, 2, 3, 4], [30, 6, 50, 36]]
    assert refined.pred_boxes.tensor.tolist() == expected, "the empty mask keeps its box"


def test_scores_are_multiplied_by_the_clipped_iou_if_asked():
    refined = refine_instances(fake_refiner([1.5, 0.0, -0.5]), IMAGE, detections(), rescore=True)
    assert refined.scores.tolist() == pytest.approx([0.9, 0.5, 0.0]), "the kept mask keeps its score"
    kept = fake_refiner([0.5, 0.0, 0.0], [RefinementStatus.REFINED, 1, RefinementStatus.KEPT_VANISHED])
    assert refine_instances(kept, IMAGE, detections(), rescore=True).scores.tolist() == pytest.approx([0.45, 0.5, 0.2])


def test_rejected_masks_are_rescored_by_what_is_said_of_them():
    """Else each mask that the gate kept would overtake those that became better."""
    rejected = RefinementStatus.KEPT_REJECTED
    judged = fake_refiner([0.5, 0.5, 0.5], [0, rejected, rejected], [0.1, 0.4, math.nan])
    rescored = refine_instances(judged, IMAGE, detections(), rescore=True).scores.tolist()
    assert rescored == pytest.approx([0.9 * 0.5, 0.5 * 0.4, 0.2])


def test_nothing_is_asked_of_fields_that_are_not_there(refiner):
    coarse = detections()
    coarse.remove("pred_boxes")
    coarse.remove("scores")
    refined = refine_instances(refiner, IMAGE, coarse, update_boxes=True, rescore=True)
    assert list(refined.get_fields()) == ["pred_masks", "pred_classes"]


def test_no_instances(refiner):
    refined = refine_instances(refiner, IMAGE, detections()[:0], update_boxes=True, rescore=True)
    assert len(refined) == 0 and refined.pred_masks.shape == (0, *SIZE)
    assert refined.pred_boxes.tensor.shape == (0, 4)


def test_without_masks_instances_pass(refiner):
    coarse = detections()
    coarse.remove("pred_masks")
    assert refine_instances(refiner, IMAGE, coarse, update_boxes=True, rescore=True) is coarse


def test_image_of_another_size(refiner):
    with pytest.raises(ValueError, match="the size of the image"):
        refine_instances(refiner, IMAGE[:, :-1], detections())


def test_image_of_the_same_size_stays_as_it_is():
    image = IMAGE.to(torch.uint8)
    assert image_in_output_frame(image, SIZE, "RGB").equal(image.float())
    assert image_in_output_frame(image, SIZE, "BGR").equal(image.flip(0).float())


def test_image_is_resized_to_the_outputs():
    halves = torch.zeros(3, 20, 40)
    halves[:, :, 20:] = 200
    resized = image_in_output_frame(halves, (10, 20), "RGB")
    assert resized.shape == (3, 10, 20)
    assert resized[:, :, :9].max() < 1e-3 and (resized[:, :, 11:] - 200).abs().max() < 1e-3
