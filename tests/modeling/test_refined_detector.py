"""META_ARCH `RefinedDetector`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from torch import nn

from phoenix_d2 import PhoenixRefiner
from phoenix_d2.config import get_phoenix_cfg

PROJECT = Path(__file__).parents[2] / "projects" / "MaskRCNN"


@pytest.fixture
def refined_cfg(mask_rcnn_cfg, refiner, tmp_path):
    """The Mask R-CNN's config with the two keys that put the refiner behind it."""
    path = tmp_path / "refiner.safetensors"
    PhoenixRefiner(refiner).save(path)
    cfg = mask_rcnn_cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "RefinedDetector"
    cfg.MODEL.REFINER.WEIGHTS = str(path)
    return cfg


@pytest.fixture
def detector_weights(mask_rcnn, tmp_path):
    """A checkpoint of the plain Mask R-CNN as Detectron2 writes it."""
    DetectionCheckpointer(mask_rcnn, str(tmp_path)).save("detector")
    return str(tmp_path / "detector.pth")


def test_it_is_the_detector_with_its_own_weights(refined_cfg, mask_rcnn, detector_weights):
    model = build_model(refined_cfg)
    assert isinstance(model, GeneralizedRCNN)
    assert list(model.state_dict()) == list(mask_rcnn.state_dict())
    DetectionCheckpointer(model).load(detector_weights)
    for name, value in model.state_dict().items():
        assert value.equal(mask_rcnn.state_dict()[name]), name


def test_same_outputs_as_attach(refined_cfg, mask_rcnn, detector_weights, photo):
    refined_cfg.MODEL.WEIGHTS = detector_weights
    refined_cfg.MODEL.REFINER.UPDATE_BOXES = True
    refined_cfg.MODEL.REFINER.RESCORE = True
    predictor = DefaultPredictor(refined_cfg)
    by_config = predictor(photo)["instances"]

    refiner = PhoenixRefiner.from_pretrained(refined_cfg.MODEL.REFINER.WEIGHTS)
    predictor.model = mask_rcnn
    coarse = predictor(photo)["instances"]
    refiner.attach(mask_rcnn, update_boxes=True, rescore=True)
    by_attach = predictor(photo)["instances"]

    assert not by_config.pred_masks.equal(coarse.pred_masks)
    assert by_config.pred_masks.equal(by_attach.pred_masks)
    assert by_config.pred_boxes.tensor.equal(by_attach.pred_boxes.tensor)
    assert by_config.scores.equal(by_attach.scores) and (by_config.scores < coarse.scores).all()
    assert by_config.pred_classes.equal(coarse.pred_classes)


@META_ARCH_REGISTRY.register()
class DetectorWithoutFormat(nn.Module):
    """Does not tell its image format, as Mask2Former does not."""

    def __init__(self, cfg):
        super().__init__()


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_image_format_is_the_configs(refined_cfg, image_format):
    refined_cfg.MODEL.REFINER.DETECTOR = "DetectorWithoutFormat"
    refined_cfg.INPUT.FORMAT = image_format
    (hook,) = build_model(refined_cfg)._forward_hooks.values()
    assert hook.image_format == image_format


def test_a_refined_detector_cannot_refine_itself(refined_cfg):
    refined_cfg.MODEL.REFINER.DETECTOR = "RefinedDetector"
    with pytest.raises(ValueError, match="name the architecture of the detector"):
        build_model(refined_cfg)


def test_refiner_weights_are_required(refined_cfg):
    refined_cfg.MODEL.REFINER.WEIGHTS = ""
    with pytest.raises(ValueError, match=r"MODEL\.REFINER\.WEIGHTS is empty"):
        build_model(refined_cfg)


def for_inference(node, prefix=""):
    """Keys and values of a MODEL node that matter once a detector is trained."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from for_inference(value, f"{prefix}{key}.")
        elif not key.endswith("_TRAIN"):
            yield f"{prefix}{key}", value


def test_project_config_is_that_of_the_model_zoo():
    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
    zoo = model_zoo.get_config(name)
    zoo.MODEL.WEIGHTS = model_zoo.get_checkpoint_url(name).replace(
        "https://dl.fbaipublicfiles.com/detectron2/", "detectron2://"
    )
    cfg = get_phoenix_cfg()
    cfg.merge_from_file(str(PROJECT / "mask_rcnn_R_50_FPN_refined.yaml"))
    ours = dict(for_inference(cfg.MODEL))
    expected = dict(for_inference(zoo.MODEL))
    assert ours.pop("META_ARCHITECTURE") == "RefinedDetector"
    assert ours.pop("REFINER.DETECTOR") == expected.pop("META_ARCHITECTURE")
    assert {key: value for key, value in ours.items() if not key.startswith(("REFINER.", "PHOENIX."))} == expected
    assert (cfg.INPUT.FORMAT, cfg.DATASETS.TEST) == (zoo.INPUT.FORMAT, zoo.DATASETS.TEST)
