"""A refiner behind models that are already built."""

from __future__ import annotations

import copy
import io
import json
import pickle

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultPredictor
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from phoenix_d2 import PhoenixRefiner
from phoenix_d2.evidence import ENOUGH_MASKS, MaskSource, SourceMemory
from phoenix_d2.modeling.hook import RefinerHook
from phoenix_d2.modeling.refine_outputs import image_in_output_frame, refine_instances
from phoenix_d2.modeling.refined_detector import RefinedDetectorWithTTA

SIZE = (40, 60)


def found(size=SIZE):
    instances = Instances(size)
    instances.pred_masks = torch.zeros(2, *size, dtype=torch.bool)
    instances.pred_masks[0, 10:30, 5:25] = True
    instances.pred_masks[1, 5:35, 30:50] = True
    instances.pred_boxes = Boxes(torch.tensor([[5.0, 10, 25, 30], [30, 5, 50, 35]]))
    instances.scores = torch.tensor([0.9, 0.5])
    return instances


class FakeDetector(nn.Module):
    """Finds the same in every image, at the size that it is asked for."""

    def __init__(self, input_format="RGB"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.input_format = input_format

    def forward(self, batched_inputs):
        if self.training:
            return {"loss_mask": self.weight.sum()}
        return [{"other": "kept", "instances": found((i["height"], i["width"]))} for i in batched_inputs]


def sample(seed=0, height=SIZE[0], width=SIZE[1]):
    image = torch.randint(0, 256, (3, 80, 120), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return {"image": image, "height": height, "width": width}


def expected_masks(refiner, inputs, image_format="RGB", **options):
    size = (inputs["height"], inputs["width"])
    image = image_in_output_frame(inputs["image"].to(refiner.device), size, image_format)
    return refine_instances(refiner, image, found(size), **options).pred_masks


def test_every_image_of_a_batch_gets_its_own_masks(refiner, device):
    refiner = copy.deepcopy(refiner).to(device)
    model, batch = FakeDetector().eval(), [sample(0), sample(1, 50, 70)]
    RefinerHook(refiner, model)
    outputs = model(batch)
    for inputs, output in zip(batch, outputs, strict=True):
        assert list(output) == ["other", "instances"] and output["other"] == "kept"
        assert output["instances"].pred_masks.equal(expected_masks(refiner, inputs))


def test_inputs_may_be_named(refiner):
    model = FakeDetector().eval()
    RefinerHook(refiner, model)
    assert model(batched_inputs=[sample()])[0]["instances"].pred_masks.equal(expected_masks(refiner, sample()))


def test_outputs_without_masks_pass(refiner):
    model = nn.Identity().eval()
    RefinerHook(refiner, model, image_format="RGB")
    batch = [sample()]
    assert model(batch) == batch


def test_only_the_chosen_outputs(refiner):
    model = FakeDetector().eval()
    RefinerHook(refiner, model, outputs=["sem_seg"])
    assert model([sample()])[0]["instances"].pred_masks.equal(found().pred_masks)


@pytest.mark.parametrize("outputs", [["instances", "masks"], "instances"])
def test_unknown_outputs(refiner, outputs):
    with pytest.raises(ValueError, match="expected a list of some of instances, sem_seg, panoptic_seg"):
        RefinerHook(refiner, FakeDetector(), outputs=outputs)


def test_training_is_left_alone(refiner):
    model = FakeDetector()
    RefinerHook(refiner, model)
    assert list(model([sample()])) == ["loss_mask"]


def test_the_gate_comes_to_know_the_model_from_image_to_image(refiner, monkeypatch):
    known = []
    refine = refiner.refine

    def spy(*args, source, **options):
        known.append(source.num_masks)
        return refine(*args, source=source, **options)

    monkeypatch.setattr(refiner, "refine", spy)
    model = FakeDetector().eval()
    hook = RefinerHook(refiner, model)
    model([sample(0), sample(1)])
    model([sample(2)])
    assert known == [0, 2, 4] and hook.memory.source.num_masks == 6
    known.clear()
    hook.memory = SourceMemory(MaskSource(ENOUGH_MASKS, hook.memory.source.mean_evidence))
    model([sample(0), sample(1)])
    assert known == [ENOUGH_MASKS] * 2, "a full memory treats all images alike"


def test_detach_and_context_manager(refiner):
    model, coarse = FakeDetector().eval(), found().pred_masks
    hook = RefinerHook(refiner, model)
    assert not model([sample()])[0]["instances"].pred_masks.equal(coarse)
    hook.detach()
    hook.detach()
    assert model([sample()])[0]["instances"].pred_masks.equal(coarse)
    with pytest.raises(RuntimeError, match="on purpose"), RefinerHook(refiner, model) as hook:
        assert not model([sample()])[0]["instances"].pred_masks.equal(coarse)
        raise RuntimeError("on purpose")
    assert model([sample()])[0]["instances"].pred_masks.equal(coarse)


def test_options_reach_the_instances(refiner):
    model = FakeDetector().eval()
    with RefinerHook(refiner, model, update_boxes=True, rescore=True):
        refined = model([sample()])[0]["instances"]
    assert refined.pred_boxes.tensor.equal(BitMasks(refined.pred_masks).get_bounding_boxes().tensor)
    assert (refined.scores < found().scores).all()


def test_channels_are_brought_to_rgb(refiner):
    bgr = sample() | {"image": sample()["image"].flip(0)}
    rgb_masks = expected_masks(refiner, sample())
    assert not rgb_masks.equal(expected_masks(refiner, bgr)), "the order of channels matters to this refiner"
    model = FakeDetector("BGR").eval()
    with RefinerHook(refiner, model):
        assert model([bgr])[0]["instances"].pred_masks.equal(rgb_masks)
    with RefinerHook(refiner, model, image_format="RGB"):
        assert model([sample()])[0]["instances"].pred_masks.equal(rgb_masks), "what is said beats what the model says"


@pytest.mark.parametrize("image_format", [None, "L"])
def test_unknown_image_format(refiner, image_format):
    model = FakeDetector(image_format)
    with pytest.raises(ValueError, match=r"FakeDetector.*image_format=cfg\.INPUT\.FORMAT"):
        RefinerHook(refiner, model)


def test_second_refiner_is_refused(refiner):
    model = FakeDetector()
    hook = RefinerHook(refiner, model)
    with pytest.raises(ValueError, match=r"already has a refiner: call detach"):
        RefinerHook(refiner, model)
    hook.detach()
    RefinerHook(refiner, model)


class Bypassing(FakeDetector):
    """Is called without hooks."""

    def __call__(self, batched_inputs):
        return self.forward(batched_inputs)


def test_model_that_bypasses_hooks_is_refused(refiner):
    with pytest.raises(ValueError, match="Bypassing replaces"):
        RefinerHook(refiner, Bypassing())


@pytest.fixture
def augmented_cfg(mask_rcnn_cfg):
    mask_rcnn_cfg.TEST.AUG.MIN_SIZES = (96, 128)
    return mask_rcnn_cfg


@torch.no_grad()
def test_test_time_augmentation(refiner, augmented_cfg, mask_rcnn):
    augmented, inputs = GeneralizedRCNNWithTTA(augmented_cfg, mask_rcnn).eval(), [sample(0, 90, 120)]
    coarse = augmented(inputs)[0]["instances"]
    hook = PhoenixRefiner(refiner).attach(augmented)
    refined = augmented(inputs)[0]["instances"]
    image = image_in_output_frame(inputs[0]["image"], (90, 120), "BGR")
    assert refined.pred_masks.equal(refine_instances(refiner, image, coarse).pred_masks)
    assert not refined.pred_masks.equal(coarse.pred_masks) and refined.scores.equal(coarse.scores)
    with pytest.raises(ValueError, match="already has a refiner"):
        RefinerHook(refiner, augmented)
    assert copy.deepcopy(augmented)(inputs)[0]["instances"].pred_masks.equal(refined.pred_masks)
    hook.detach()
    assert augmented(inputs)[0]["instances"].pred_masks.equal(coarse.pred_masks)


@torch.no_grad()
def test_augmentation_of_a_detector_with_a_refiner(refiner, augmented_cfg, mask_rcnn):
    with pytest.raises(ValueError, match="No refiner is attached to this GeneralizedRCNN"):
        RefinedDetectorWithTTA(augmented_cfg, mask_rcnn)
    plain, inputs = GeneralizedRCNNWithTTA(augmented_cfg, mask_rcnn).eval(), [sample(0, 90, 120)]
    coarse = plain(inputs)[0]["instances"]
    RefinerHook(refiner, mask_rcnn, update_boxes=True)
    refined = RefinedDetectorWithTTA(augmented_cfg, mask_rcnn).eval()(inputs)[0]["instances"]
    image = image_in_output_frame(inputs[0]["image"], (90, 120), "BGR")
    expected = refine_instances(refiner, image, coarse, update_boxes=True)
    assert refined.pred_masks.equal(expected.pred_masks)
    assert refined.pred_boxes.tensor.equal(expected.pred_boxes.tensor)


def test_refiner_is_no_part_of_the_model(refiner):
    model = FakeDetector()
    RefinerHook(refiner, model)
    assert list(model.state_dict()) == ["weight"]
    assert list(model.parameters()) == [model.weight]
    assert list(model.modules()) == [model]


def pickled(model):
    buffer = io.BytesIO()
    pickle.dump(model, buffer)
    buffer.seek(0)
    return pickle.load(buffer)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_copies_bring_the_hook_along(refiner, duplicate):
    model = FakeDetector().eval()
    model.hook = RefinerHook(refiner, model)
    other = duplicate(model)
    expected = expected_masks(refiner, sample())
    assert other([sample()])[0]["instances"].pred_masks.equal(expected)
    other.hook.detach()
    assert other([sample()])[0]["instances"].pred_masks.equal(found().pred_masks)
    assert model([sample()])[0]["instances"].pred_masks.equal(expected), "the original keeps its own hook"


@torch.no_grad()
def test_mask_rcnn_that_finds_nothing(refiner, mask_rcnn):
    for predictor in mask_rcnn.roi_heads.box_predictor.modules():
        predictor.test_score_thresh = 1.0
    inputs = [sample()]
    (before,) = mask_rcnn(inputs)
    RefinerHook(refiner, mask_rcnn, update_boxes=True, rescore=True)
    (after,) = mask_rcnn(inputs)
    assert len(before["instances"]) == len(after["instances"]) == 0
    assert list(before["instances"].get_fields()) == list(after["instances"].get_fields())
    assert before["instances"].pred_masks.dtype == after["instances"].pred_masks.dtype


def test_mask_rcnn_still_trains(refiner, mask_rcnn):
    RefinerHook(refiner, mask_rcnn)
    target = Instances((80, 120))
    target.gt_boxes = Boxes(torch.tensor([[10.0, 10, 60, 60]]))
    target.gt_classes = torch.tensor([1])
    masks = torch.zeros(1, 80, 120, dtype=torch.bool)
    masks[0, 10:60, 10:60] = True
    target.gt_masks = BitMasks(masks)
    with EventStorage():
        losses = mask_rcnn.train()([sample() | {"instances": target}])
    assert {"loss_mask", "loss_cls", "loss_rpn_cls"} <= set(losses)
    sum(losses.values()).backward()
    assert all(parameter.grad is None for parameter in refiner.parameters())


def test_default_predictor(refiner, mask_rcnn_cfg, mask_rcnn, photo):
    predictor = DefaultPredictor(mask_rcnn_cfg)
    predictor.model.load_state_dict(mask_rcnn.state_dict())
    coarse = predictor(photo)["instances"]
    with PhoenixRefiner(refiner).attach(predictor.model):
        refined = predictor(photo)["instances"]
    assert len(coarse) == len(refined) == 3 and refined.image_size == (90, 120)
    assert not refined.pred_masks.equal(coarse.pred_masks)
    assert predictor(photo)["instances"].pred_masks.equal(coarse.pred_masks)


class Classifier(FakeDetector):
    """Gives everything the class 0."""

    def forward(self, batched_inputs):
        outputs = super().forward(batched_inputs)
        for output in outputs:
            output["instances"].pred_classes = torch.zeros(2, dtype=torch.long)
        return outputs


@pytest.fixture
def dataset(tmp_path):
    """Name of a dataset whose only annotation is the first mask that `FakeDetector` finds."""
    corners = [5, 10, 25, 10, 25, 30, 5, 30]
    annotation = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [5, 10, 20, 20], "area": 400, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 7, "name": "thing"}],
        "annotations": [annotation | {"segmentation": [corners]}],
    }
    path, name = tmp_path / "annotations.json", "one_square"
    path.write_text(json.dumps(content))
    register_coco_instances(name, {}, str(path), str(tmp_path))
    # evaluators know the categories only of a dataset that has been read
    DatasetCatalog.get(name)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_coco_evaluator(refiner, dataset, tmp_path):
    model, batches = Classifier().eval(), [[sample() | {"image_id": 1}]]
    evaluator = COCOEvaluator(dataset, output_dir=str(tmp_path))
    coarse = inference_on_dataset(model, batches, evaluator)
    with RefinerHook(refiner, model):
        refined = inference_on_dataset(model, batches, evaluator)
    assert coarse["segm"]["AP"] == pytest.approx(100)
    assert refined["segm"]["AP"] < 100, "random weights make masks worse"
    assert refined["bbox"] == pytest.approx(coarse["bbox"], nan_ok=True)
    assert len(json.loads((tmp_path / "coco_instances_results.json").read_text())) == 2


def test_a_predictor_is_no_model(refiner):
    class Predictor:
        model = FakeDetector()

    with pytest.raises(ValueError, match=r"nn\.Module, got a Predictor: pass its \.model"):
        PhoenixRefiner(refiner).attach(Predictor())
    with pytest.raises(ValueError, match="got a dict: pass the model itself"):
        RefinerHook(refiner, {})
