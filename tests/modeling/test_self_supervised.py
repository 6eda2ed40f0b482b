"""Training towards targets that the starting decoder finds: no annotation is ever read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from phoenix_d2.data.build import build_train_loader
from phoenix_d2.data.datasets import register_folders
from phoenix_d2.engine import Trainer
from phoenix_d2.predictor import PhoenixRefiner


@pytest.fixture
def image_folder(drawn_folder, tmp_path):
    """The drawn pictures without their annotations, as a registered dataset."""
    folder = tmp_path / "pictures"
    shutil.copytree(Path(drawn_folder, "images"), folder)
    register_folders([str(folder)])
    yield str(folder)
    DatasetCatalog.remove(str(folder))


@pytest.fixture
def pseudo_cfg(cfg, image_folder):
    cfg.DATASETS.TRAIN = (image_folder,)
    cfg.MODEL.PHOENIX.TARGET = "pseudo"
    # random weights are sure of nothing
    cfg.MODEL.PHOENIX.PSEUDO.MIN_IOU = 0.0
    cfg.MODEL.PHOENIX.PSEUDO.GRID_SIZE = 2
    cfg.MODEL.PHOENIX.TRAINABLE = ("mask_decoder",)
    return cfg


def start(cfg, *, resume=False, max_iter=None):
    torch.manual_seed(0)
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.max_iter = max_iter or trainer.max_iter
    return trainer


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(value, others[name]) for name, value in weights.items())


def test_images_alone_are_enough(pseudo_cfg):
    pseudo_cfg.SOLVER.MAX_ITER = 3
    pseudo_cfg.SOLVER.CHECKPOINT_PERIOD = 2
    trainer = start(pseudo_cfg)
    teacher, student = weights(trainer.model.teacher), weights(trainer.model.refiner.mask_decoder)
    trainer.train()
    assert same(weights(trainer.model.teacher), teacher)
    assert not same(weights(trainer.model.refiner.mask_decoder), student)
    assert trainer.storage.history("pseudo_targets").latest() > 0
    # a resumed run has the teacher that it began with, not one made of what was trained since
    pseudo_cfg.SOLVER.MAX_ITER = 4
    resumed = start(pseudo_cfg, resume=True)
    assert resumed.start_iter == 3 and same(weights(resumed.model.teacher), teacher)
    # the teacher is no part of what is used
    PhoenixRefiner.from_pretrained(Path(pseudo_cfg.OUTPUT_DIR, "model_final.pth"))


def test_the_weights_to_start_from_are_the_teachers(pseudo_cfg, tmp_path):
    torch.manual_seed(1)
    source = build_model(pseudo_cfg)
    torch.save({"model": {k: v for k, v in source.state_dict().items() if "teacher" not in k}}, tmp_path / "start.pth")
    pseudo_cfg.MODEL.WEIGHTS = str(tmp_path / "start.pth")
    trainer = start(pseudo_cfg)
    assert same(weights(trainer.model.teacher.mask_decoder), weights(source.refiner.mask_decoder))


def test_annotations_that_are_there_are_not_read(pseudo_cfg, drawn_folder):
    pseudo_cfg.DATASETS.TRAIN = (drawn_folder,)
    (sample, *_) = next(iter(build_train_loader(pseudo_cfg)))
    assert "annotations" not in sample and len(sample["instances"]) == 0


def test_windows_of_images_without_annotations(pseudo_cfg):
    pseudo_cfg.MODEL.PHOENIX.DATA.OBJECT_CROP_PROB = 1.0
    loader = iter(build_train_loader(pseudo_cfg))
    shapes = {tuple(sample["image"].shape) for _ in range(4) for sample in next(loader)}
    assert all(max(shape) == 128 for shape in shapes) and len(shapes) > 1


def test_an_image_without_a_confident_answer_has_no_target(pseudo_cfg, training_batch):
    pseudo_cfg.MODEL.PHOENIX.PSEUDO.MIN_IOU = 1.0
    torch.manual_seed(0)
    model = build_model(pseudo_cfg).train()
    with EventStorage() as storage:
        losses = model(training_batch)
    assert storage.latest()["pseudo_targets"][0] == 0
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_annotations_are_wanted_where_they_are_the_target(pseudo_cfg, image_folder):
    pseudo_cfg.MODEL.PHOENIX.TARGET = "annotation"
    with pytest.raises(ValueError, match=r"no annotations to train towards.*pseudo"):
        build_train_loader(pseudo_cfg)


def test_noise_of_a_model_has_nothing_to_belong_to(pseudo_cfg):
    pseudo_cfg.DATASETS.COARSE_FILES_TRAIN = ("noise.json",)
    with pytest.raises(ValueError, match=r"COARSE_FILES_TRAIN.*pseudo"):
        build_train_loader(pseudo_cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TARGET", "both", "'both'"),
        ("TRAINABLE", ("image_encoder", "mask_decoder"), "leave it out"),
    ],
)
def test_what_does_not_go_together(pseudo_cfg, key, value, message):
    pseudo_cfg.MODEL.PHOENIX[key] = value
    with pytest.raises(ValueError, match=message):
        build_model(pseudo_cfg)


def test_pre_training_wants_annotations(pseudo_cfg):
    pseudo_cfg.MODEL.META_ARCHITECTURE = "PromptableDecoder"
    with pytest.raises(ValueError, match="wants annotations"):
        build_model(pseudo_cfg)
