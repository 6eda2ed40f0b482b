"""Boundary AP inside Detectron2's evaluation."""

from __future__ import annotations

import json
import math

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances

from phoenix_d2.evaluation.evaluators import BoundaryCOCOEvaluator, BoundaryLVISEvaluator
from phoenix_d2.evaluation.instance_masks import COCO_METRICS, LVIS_METRICS


@pytest.fixture
def register(tmp_path):
    """Registers an annotation file with COCO's or LVIS' metadata; unregisters it after the test."""
    names = []

    def register_dataset(annotations, name):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(annotations))
        names.append(name)
        if "lvis" in name:
            MetadataCatalog.get(name).set(json_file=str(path), evaluator_type="lvis")
        else:
            register_coco_instances(name, {}, str(path), str(tmp_path))
        return name

    yield register_dataset
    for name in names:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def instances(masks, classes, *, boxes=None, dtype=torch.bool):
    predictions = Instances((100, 100))
    predictions.pred_masks = torch.stack([torch.from_numpy(mask) for mask in masks]).to(dtype)
    predictions.pred_classes = torch.tensor(classes)
    predictions.scores = torch.full((len(masks),), 0.5)
    if boxes is not None:
        predictions.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    return predictions


def nothing():
    predictions = Instances((100, 100))
    predictions.pred_masks = torch.zeros(0, 100, 100, dtype=torch.bool)
    predictions.pred_boxes = Boxes(torch.zeros(0, 4))
    predictions.pred_classes = torch.zeros(0, dtype=torch.long)
    predictions.scores = torch.zeros(0)
    return predictions


def evaluate(evaluator, predictions, **kwargs):
    evaluator.reset()
    for image_id, instances_of_image in predictions.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances_of_image}])
    return evaluator.evaluate(**kwargs)


def test_coco_reports_boundary_ap_beside_detectron2s_figures(register, dataset, square):
    # category ids 1 and 2 become classes 0 and 1 only if the dataset has been read
    name = register(dataset([(1, 1, square(10)), (2, 2, square(50))]), "drawn_coco")
    outputs = [[{"instances": instances([square(11)], [0])}], [{"instances": instances([square(51)], [1])}]]
    batches = [[{"image_id": 1}], [{"image_id": 2}]]
    evaluator = BoundaryCOCOEvaluator(name, distributed=False)
    scores = inference_on_dataset(lambda batch: outputs[batches.index(batch)], batches, evaluator)
    assert list(scores) == ["bbox", "segm", "boundary"]
    # shifted by 1 pixel: mask IoU 39 / 41 = 0.951, Boundary IoU 370 / 518 = 0.714
    assert scores["segm"]["AP"] == pytest.approx(100)
    assert scores["bbox"]["AP"] == pytest.approx(100), "boxes are those of the masks"
    assert scores["boundary"]["AP"] == pytest.approx(50)
    assert tuple(scores["boundary"]) == COCO_METRICS


def test_coco_takes_float_masks_with_boxes_of_zeros(register, dataset, square):
    name = register(dataset([(1, 1, square(10))]), "drawn_coco")
    predictions = instances([square(10)], [0], boxes=[[0, 0, 0, 0]], dtype=torch.float32)
    scores = evaluate(BoundaryCOCOEvaluator(name, distributed=False), {1: predictions})
    for iou_type in ("segm", "boundary"):
        assert (scores[iou_type]["AP"], scores[iou_type]["APm"]) == pytest.approx((100, 100))
    assert scores["bbox"]["AP"] == 0


def test_coco_options_are_detectron2s(register, dataset, square, tmp_path):
    name = register(dataset([(1, 1, square(10)), (2, 1, square(50))]), "drawn_coco")
    evaluator = BoundaryCOCOEvaluator(
        name, ("segm",), distributed=False, output_dir=str(tmp_path), max_dets_per_image=1, dilation_ratio=0.05
    )
    first = instances([square(60), square(11)], [0, 0])
    first.scores = torch.tensor([0.9, 0.8])
    predictions = {1: first, 2: instances([square(51)], [0])}
    scores = evaluate(evaluator, predictions, img_ids=[2])
    assert list(scores) == ["segm", "boundary"]
    assert scores["boundary"]["AP"] == pytest.approx(80), "a band of 7 pixels: (924 - 66) / (924 + 66) = 0.867"
    assert evaluate(evaluator, predictions, img_ids=[1])["boundary"]["AP"] == 0, "the better mask comes second"
    assert len(json.loads((tmp_path / "coco_instances_results.json").read_text())) == 3


@pytest.mark.parametrize("style", ["coco", "lvis"])
def test_zero_predictions_are_nan_and_present(register, dataset, square, style):
    name = register(dataset([(1, 1, square(10))]), f"drawn_{style}")
    evaluator_class = BoundaryCOCOEvaluator if style == "coco" else BoundaryLVISEvaluator
    scores = evaluate(evaluator_class(name, distributed=False), {1: nothing(), 2: nothing()})
    assert list(scores) == ["bbox", "segm", "boundary"]
    for figures in scores.values():
        assert tuple(figures) == (COCO_METRICS if style == "coco" else LVIS_METRICS)
        assert all(math.isnan(value) for value in figures.values())


def test_predictions_without_masks_are_evaluated_as_boxes(register, dataset, square):
    name = register(dataset([(1, 1, square(10))]), "drawn_coco")
    predictions = instances([square(10)], [0], boxes=[[10, 10, 50, 50]])
    predictions.remove("pred_masks")
    scores = evaluate(BoundaryCOCOEvaluator(name, distributed=False), {1: predictions})
    assert list(scores) == ["bbox"]
    assert scores["bbox"]["AP"] == pytest.approx(100)


def test_lvis_reports_box_mask_and_boundary_ap(register, dataset, square, tmp_path):
    annotations = dataset([(1, 1, square(10)), (2, 2, square(50))], num_categories=3)
    evaluator = BoundaryLVISEvaluator(
        register(annotations, "drawn_lvis"), distributed=False, output_dir=str(tmp_path / "out")
    )
    # LVIS' classes are its category ids less 1; the third is not verified in image 2 and does not count
    predictions = {1: instances([square(11)], [0]), 2: instances([square(52), square(0)], [1, 2])}
    scores = evaluate(evaluator, predictions)
    assert list(scores) == ["bbox", "segm", "boundary"]
    assert (scores["segm"]["APr"], scores["segm"]["APc"]) == pytest.approx((100, 90))
    assert (scores["boundary"]["APr"], scores["boundary"]["APc"]) == pytest.approx((50, 10))
    assert (scores["bbox"]["APr"], scores["bbox"]["APc"]) == pytest.approx((100, 90))
    assert scores["boundary"]["AP"] == pytest.approx(30)
    assert math.isnan(scores["boundary"]["APf"])
    assert len(json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())) == 3


def test_lvis_evaluates_the_tasks_it_is_asked_for(register, dataset, square):
    name = register(dataset([(1, 1, square(10))]), "drawn_lvis")
    predictions = {1: instances([square(10)], [0])}
    assert list(evaluate(BoundaryLVISEvaluator(name, ("segm",), distributed=False), predictions)) == [
        "segm",
        "boundary",
    ]
    assert list(evaluate(BoundaryLVISEvaluator(name, ("bbox",), distributed=False), predictions)) == ["bbox"]
