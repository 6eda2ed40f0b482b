"""An encoder, pictures and a config so small that training is a matter of seconds."""

from __future__ import annotations

import logging

import pytest


def register_test_encoder():
    """Make "test" an encoder: a frozen and a trainable convolution, 128 pixels in, an 8 x 8 embedding out."""
    import torch
    from torch import nn

    from phoenix_d2.sam.encoders import ENCODERS, EncoderSpec

    def build():
        # weights that are frozen are the same in every build, as if they came from a file
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            modules = {"backbone": nn.Conv2d(3, 16, 4, stride=4), "neck": nn.Conv2d(16, 256, 4, stride=4)}
        encoder = nn.Sequential()
        for name, module in modules.items():
            encoder.add_module(name, module)
        return encoder

    ENCODERS["test"] = EncoderSpec(build=build, input_size=128, input_multiple=16, frozen=("backbone",))


def pytest_generate_tests(metafunc):
    """Run tests that take a `device` on the CPU, and on a GPU where there is one."""
    if "device" in metafunc.fixturenames:
        import torch

        metafunc.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])


@pytest.fixture(scope="session")
def test_encoder():
    register_test_encoder()


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory):
    """Six drawn pictures; the folder's path is the name of a registered dataset."""
    from phoenix_d2.data.datasets import register_folders
    from phoenix_d2.data.datasets.drawn import draw_dataset

    folder = tmp_path_factory.mktemp("drawn") / "data"
    draw_dataset(folder, num_images=6, image_size=(96, 128))
    register_folders([str(folder)])
    return str(folder)


@pytest.fixture
def cityscapes_root(tmp_path):
    """Two drawn pictures of 80 x 160 pixels in Cityscapes' layout, split "val"."""
    import cv2
    import numpy as np

    # value of the label map and XYXY box: a group, cars, a caravan (which has instances, but is not evaluated), a rider
    objects = {
        "bonn/bonn_000000_000019": [(24, (70, 10, 90, 40)), (26000, (20, 20, 60, 60)), (26001, (100, 20, 130, 60))],
        "ulm/ulm_000001_000019": [(29000, (5, 5, 30, 30)), (25000, (60, 10, 80, 50))],
    }
    road = 7
    for name, boxes in objects.items():
        labels = np.full((80, 160), road, np.uint16)
        image = np.full((80, 160, 3), 90, np.uint8)
        for value, (x0, y0, x1, y1) in boxes:
            labels[y0:y1, x0:x1] = value
            image[y0:y1, x0:x1] = (value % 7 * 30, 200, 40)
        for folder, ending, pixels in (("gtFine", "gtFine_instanceIds", labels), ("leftImg8bit", "leftImg8bit", image)):
            path = tmp_path / folder / "val" / f"{name}_{ending}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)
    return tmp_path


@pytest.fixture
def cfg(test_encoder, drawn_folder, tmp_path):
    """A config of everything that Phoenix has, in small."""
    from phoenix_d2.config import load_config

    cfg = load_config("Base-Phoenix.yaml")
    cfg.MODEL.DEVICE = "cpu"
    phoenix = cfg.MODEL.PHOENIX
    phoenix.ENCODER.NAME = "test"
    phoenix.TRAINABLE = ("image_encoder", "prompt_encoder", "mask_decoder")
    phoenix.PERTURBATION.NUM_EMBEDDINGS = 4
    phoenix.PERTURBATION.MAX_STEPS = 3
    phoenix.PERTURBATION.MAX_DECAYS = 1
    phoenix.CMRL.NUM_SAMPLES = 32
    phoenix.DATA.MASKS_PER_IMAGE = 2
    phoenix.DATA.MIN_AREA = 64
    cfg.MODEL.REFINER.NUM_ITERS = 1
    cfg.DATASETS.TRAIN = (drawn_folder,)
    cfg.DATASETS.TEST = ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.WARMUP_ITERS = 2
    cfg.SOLVER.MAX_ITER = 6
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg


@pytest.fixture
def training_batch():
    """Two samples as the dataset mapper makes them: two squares in a wide picture, one in a square one."""
    import torch
    from detectron2.structures import BitMasks, Instances

    def sample(height, boxes):
        image = torch.full((3, height, 128), 40, dtype=torch.uint8)
        masks = torch.zeros(len(boxes), height, 128, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            mask[y0:y1, x0:x1] = True
            image[:, y0:y1, x0:x1] = 200
        return {"image": image, "instances": Instances((height, 128), gt_masks=BitMasks(masks))}

    return [sample(80, [(8, 8, 48, 56), (64, 16, 112, 72)]), sample(128, [(20, 30, 100, 90)])]


@pytest.fixture
def restored_loggers():
    """Undo what Detectron2's set-up does to loggers, which would hide their messages from later tests."""
    from detectron2.utils.logger import setup_logger

    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "phoenix_d2")]
    before = [(logger.propagate, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (propagate, level, handlers) in zip(loggers, before, strict=True):
        logger.propagate, logger.handlers[:] = propagate, handlers
        logger.setLevel(level)
    setup_logger.cache_clear()
