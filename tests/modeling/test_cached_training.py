"""Training on cached features, the same curve with the encoder in the first round of views alone; cached evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from detectron2.structures import Instances

from phoenix_d2.engine import Trainer


class Recorder(HookBase):
    """Keeps the total loss and the share of cache hits of every iteration."""

    def __init__(self):
        self.losses, self.hits = [], []

    def after_step(self):
        latest = self.trainer.storage.latest()
        self.losses.append(latest["total_loss"][0])
        self.hits.append(latest.get("feature_cache_hits", (None,))[0])


@pytest.fixture
def train(cfg, tmp_path):
    # of 6 images
    cfg.SOLVER.IMS_PER_BATCH = 3
    cfg.SOLVER.MAX_ITER = 4
    cfg.MODEL.PHOENIX.DATA.NUM_VIEWS = 1
    # an attack takes other steps after the slightest change of an embedding
    cfg.MODEL.PHOENIX.PERTURBATION.MORPHOLOGY_PROB = 1.0
    cfg.MODEL.PHOENIX.CASCADE.MAX_PROB = 0.0
    cfg.TEST.EVAL_PERIOD = 0

    def train(cache="", **changes):
        cfg.merge_from_list([x for key, value in changes.items() for x in (f"MODEL.PHOENIX.{key}", value)])
        cfg.MODEL.PHOENIX.FEATURE_CACHE = cache and str(tmp_path / cache)
        Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
        torch.manual_seed(0)
        trainer, recorder = Trainer(cfg), Recorder()
        trainer.register_hooks([recorder])
        trainer.train()
        return recorder

    return train


@pytest.mark.parametrize(
    "trainable", [("mask_decoder",), ("image_encoder", "prompt_encoder", "mask_decoder")], ids=["decoder", "neck"]
)
def test_the_curve_is_that_of_training_without(train, trainable):
    plain, cached = train(TRAINABLE=trainable), train("cache", TRAINABLE=trainable)
    assert plain.hits == [None] * 4 and cached.hits == [0, 0, 1, 1]
    assert cached.losses == pytest.approx(plain.losses, rel=2e-3)
    # what the cache holds already does not matter
    warm = train("cache", TRAINABLE=trainable)
    assert warm.hits == [1] * 4 and warm.losses == cached.losses


def test_a_cache_that_could_never_be_hit_is_refused(cfg, tmp_path):
    cfg.MODEL.PHOENIX.FEATURE_CACHE = str(tmp_path)
    with pytest.raises(ValueError, match="NUM_VIEWS"):
        build_model(cfg)


@torch.no_grad()
def test_evaluation_keeps_embeddings_where_a_key_says_so(cfg, tmp_path):
    cfg.MODEL.REFINER.EMBEDDING_CACHE = str(tmp_path / "embeddings")
    model, encoded = build_model(cfg).eval(), []
    model.refiner.image_encoder.register_forward_hook(lambda *_: encoded.append(1))
    masks = torch.zeros(1, 96, 128, dtype=torch.bool)
    masks[:, 20:70, 30:90] = True
    coarse = Instances((96, 128), pred_masks=masks)
    inputs = {"image": torch.full((3, 96, 128), 40, dtype=torch.uint8), "coarse_instances": coarse}
    first, second = (model([inputs])[0]["instances"].pred_masks for _ in range(2))
    assert len(encoded) == 1 and torch.equal(first, second)
