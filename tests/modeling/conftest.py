"""A small Mask R-CNN of Detectron2's model zoo and a small refiner, both with random weights."""

from __future__ import annotations

import pytest
import torch

from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam.build import build_refiner

INPUT_SIZE = 128


@pytest.fixture(scope="session")
def refiner():
    """One pass at 128 x 128; it changes every mask that it is given."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build_refiner("tiny", input_size=INPUT_SIZE, options=RefineOptions(num_iters=1)).eval()


@pytest.fixture
def mask_rcnn_cfg():
    """Config of a Mask R-CNN that finds three objects anywhere."""
    pytest.importorskip("detectron2")
    from detectron2 import model_zoo

    from phoenix_d2.config import add_phoenix_config

    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml")
    add_phoenix_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    # batch statistics of random weights overflow in evaluation
    cfg.MODEL.RESNETS.NORM = "GN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 3
    cfg.INPUT.MIN_SIZE_TEST = 128
    cfg.INPUT.MAX_SIZE_TEST = 192
    cfg.MODEL.PHOENIX.ENCODER.NAME = "tiny"
    cfg.MODEL.PHOENIX.ENCODER.INPUT_SIZE = INPUT_SIZE
    cfg.MODEL.REFINER.NUM_ITERS = 1
    return cfg


@pytest.fixture
def mask_rcnn(mask_rcnn_cfg):
    """That Mask R-CNN, built and in evaluation mode."""
    from detectron2.modeling import build_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(mask_rcnn_cfg).eval()


@pytest.fixture
def photo():
    """(90, 120, 3) uint8 image."""
    return torch.randint(0, 256, (90, 120, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8).numpy()
