"""Refined masks in `Instances`."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.structures import Boxes, Instances

from phoenix_d2.evidence import EVIDENCE
from phoenix_d2.modeling.refine_outputs import image_in_output_frame, refine_instances, refine_output
from phoenix_d2.ops.frames import Frame
from phoenix_d2.structures import RefinementResult, RefinementStatus

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


class ShiftingRefiner:
    """Moves masks down by a pixel, but for what lies in the first row."""

    device = torch.device("cpu")

    def __init__(self, ious=0.5, status=0, coarse_ious=math.nan):
        self.answers = (ious, status, coarse_ious)
        self.num_calls = 0

    def plan(self, masks):
        frame = Frame.whole(tuple(masks.shape[1:]), input_size=SIZE[1], low_res_size=SIZE[1])
        return None, dict.fromkeys(range(len(masks)), frame)

    def refine(self, image, masks, *, source, keep_logits):
        assert masks.dtype == torch.bool and image.shape[1:] == masks.shape[1:]
        self.num_calls += 1
        shifted, n = masks.roll(1, dims=1), len(masks)
        shifted[:, 0] = masks[:, 0]
        logits = torch.full((n, SIZE[1], SIZE[1]), -9.0)
        logits[:, : SIZE[0]][shifted] = 5.0
        ious, status, coarse_ious = (torch.tensor(answer).expand(n) for answer in self.answers)
        traces = torch.zeros(n, 1)
        evidence = torch.zeros(n, len(EVIDENCE))
        return RefinementResult(shifted, ious, coarse_ious, logits, status, traces, traces, evidence, ious)


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
    refined = refine_instances(ShiftingRefiner([0.5, 0.0, 0.5], [0, 1, 0]), IMAGE, detections(), update_boxes=True)
    expected = [[5, 11, 25, 31], [1, 2, 3, 4], [30, 6, 50, 36]]
    assert refined.pred_boxes.tensor.tolist() == expected, "the empty mask keeps its box"


def test_scores_are_multiplied_by_the_clipped_iou_if_asked():
    refined = refine_instances(ShiftingRefiner([1.5, 0.0, -0.5], [0, 1, 0]), IMAGE, detections(), rescore=True)
    assert refined.scores.tolist() == pytest.approx([0.9, 0.5, 0.0]), "the kept mask keeps its score"
    kept = ShiftingRefiner([0.5, 0.0, 0.0], [RefinementStatus.REFINED, 1, RefinementStatus.KEPT_VANISHED])
    assert refine_instances(kept, IMAGE, detections(), rescore=True).scores.tolist() == pytest.approx([0.45, 0.5, 0.2])


def test_rejected_masks_are_rescored_by_what_is_said_of_them():
    """Else each mask that the gate kept would overtake those that became better."""
    rejected = RefinementStatus.KEPT_REJECTED
    judged = ShiftingRefiner([0.5, 0.5, 0.5], [0, rejected, rejected], [0.1, 0.4, math.nan])
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
    assert image_in_output_frame(image, SIZE, "RGB").equal(image)
    assert image_in_output_frame(image, SIZE, "BGR").equal(image.flip(0))


def test_image_is_resized_to_the_outputs():
    halves = torch.zeros(3, 20, 40)
    halves[:, :, 20:] = 200
    resized = image_in_output_frame(halves, (10, 20), "RGB")
    assert resized.shape == (3, 10, 20)
    assert resized[:, :, :9].max() < 1e-3 and (resized[:, :, 11:] - 200).abs().max() < 1e-3


def test_instances_and_image_differ_in_size():
    wide = Instances((40, 50), pred_masks=torch.zeros(1, 40, 50, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"one size.*'instances': \(40, 50\).*MODEL.REFINER.OUTPUTS"):
        refine_output(ShiftingRefiner(), IMAGE, {"instances": wide, "sem_seg": torch.zeros(2, *SIZE)})


def halves(*, dtype=torch.float32):
    """(3, H, W) scores of class 2 above and 0 below row 20, class 1 nowhere."""
    scores = torch.tensor([1, -4, 2], dtype=dtype)[:, None, None].repeat(1, *SIZE)
    scores[2, :20], scores[0, 20:] = 5, 5
    return scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sem_seg_is_the_refined_map_and_still_scores(dtype):
    scores = halves(dtype=dtype)
    before = scores.clone()
    refined = refine_output(ShiftingRefiner(), IMAGE, {"sem_seg": scores})["sem_seg"]
    labels = refined.argmax(0)
    assert refined.dtype == dtype and scores.equal(before)
    assert (labels[:21] == 2).all() and (labels[21:] == 0).all(), "the upper half has moved down"
    torch.testing.assert_close(refined.sort(0).values, before.sort(0).values, rtol=2e-3, atol=0)
    assert refined[:, :20].equal(before[:, :20]), "where the label is the same, so are the scores"


def test_a_tie_does_not_undo_a_label():
    scores = halves()
    scores[1, 20] = 5
    refined = refine_output(ShiftingRefiner(), IMAGE, {"sem_seg": scores})["sem_seg"]
    assert (refined[:, 20].argmax(0) == 2).all()


def panoptic():
    """A thing in two pieces on stuff, void at the right, and a second thing of one row."""
    ids = torch.full(SIZE, 3, dtype=torch.int32)
    ids[10:20, 5:15] = ids[10:20, 30:40] = 1
    ids[20, 5:15] = 2
    ids[:, 50:] = 0
    info = [
        {"id": 1, "isthing": True, "category_id": 4, "score": 0.9, "instance_id": 0},
        {"id": 2, "isthing": True, "category_id": 4, "score": 0.8, "instance_id": 1},
        {"id": 3, "isthing": False, "category_id": 7, "area": 1800},
    ]
    return ids, info


def test_panoptic_segments_agree_with_the_map():
    ids, info = panoptic()
    refined, refined_info = refine_output(ShiftingRefiner(), IMAGE, {"panoptic_seg": (ids, info)})["panoptic_seg"]
    assert refined.dtype == ids.dtype and (refined == 0).equal(ids == 0), "void stays void"
    assert (refined[11:21, 30:40] == 1).all(), "the second piece of a thing goes with it"
    assert sorted(refined.unique().tolist()) == [0] + [segment["id"] for segment in refined_info]
    stuff = next(segment for segment in refined_info if segment["id"] == 3)
    assert stuff["area"] == (refined == 3).sum() and info[2]["area"] == 1800
    assert {"id": 1, "isthing": True, "category_id": 4, "score": 0.9, "instance_id": 0} in refined_info


def test_a_segment_that_vanishes_leaves_the_list():
    ids, info = panoptic()
    ids[21:] = 0
    refined, refined_info = refine_output(ShiftingRefiner(), IMAGE, {"panoptic_seg": (ids, info)})["panoptic_seg"]
    assert 2 not in refined and [segment["id"] for segment in refined_info] == [1, 3]


def test_panoptic_map_without_a_list():
    ids = torch.where(panoptic()[0] == 0, -1, panoptic()[0] * 1000)
    refined, info = refine_output(ShiftingRefiner(), IMAGE, {"panoptic_seg": (ids, None)})["panoptic_seg"]
    assert info is None and (refined == -1).equal(ids == -1) and not refined.equal(ids)


def test_all_fields_are_refined_at_once_each_as_if_alone(refiner):
    output = {"instances": detections(), "panoptic_seg": panoptic(), "sem_seg": halves(), "other": 1}
    counting = ShiftingRefiner()
    assert list(refine_output(counting, IMAGE, output)) == list(output) and counting.num_calls == 1
    together = refine_output(refiner, IMAGE, output)
    alone = {name: refine_output(refiner, IMAGE, output, outputs=[name])[name] for name in list(output)[:3]}
    assert together["other"] == 1
    assert together["instances"].pred_masks.equal(alone["instances"].pred_masks)
    assert together["sem_seg"].equal(alone["sem_seg"])
    assert together["panoptic_seg"][0].equal(alone["panoptic_seg"][0])


def test_only_what_is_asked_for(refiner):
    output = {"instances": detections(), "sem_seg": halves()}
    refined = refine_output(refiner, IMAGE, output, outputs=["sem_seg"])
    assert refined["instances"] is output["instances"] and not refined["sem_seg"].equal(output["sem_seg"])


def test_an_output_without_masks_passes(refiner):
    output = {"proposals": Instances(SIZE)}
    assert refine_output(refiner, IMAGE, output) == output
