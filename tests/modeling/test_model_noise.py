"""Noise that is the decoder's own answer to simulated prompts, in both trainable architectures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from phoenix_d2.structures import MaskPrediction

ARCHITECTURES = ("Phoenix", "PromptableDecoder")


@pytest.fixture(params=ARCHITECTURES)
def build(request, cfg):
    def build_model_with(probability):
        cfg.MODEL.META_ARCHITECTURE = request.param
        cfg.MODEL.PHOENIX.PERTURBATION.OWN_NOISE_PROB = probability
        torch.manual_seed(0)
        return build_model(cfg).train()

    return build_model_with


def answer_with(monkeypatch, model, masks):
    """Let the decoder answer every prompt with (N, s, s) bool masks, in the order of N prompts."""

    def decode(_embeddings, prompts):
        assert prompts.mask_logits is None
        logits = torch.where(masks, 5.0, -5.0)[:, None].expand(-1, 4, -1, -1)
        return MaskPrediction(logits, torch.zeros(len(masks), 4), logits)

    monkeypatch.setattr(model.refiner, "decode", decode)


def test_answers_that_hit_their_target_are_the_noise(build, training_batch, monkeypatch):
    model = build(1.0)
    with EventStorage():
        batch = model.load_batch(training_batch)
        # a bit of the first target is missing, the second is missed
        answers = batch.masks.clone()
        answers[0, :, :4] = False
        answers[1] = batch.masks[0]
        answer_with(monkeypatch, model, answers)
        noise = model.model_noise(batch, model.generator())
    assert noise[0].equal(answers[0]) and noise[2].equal(answers[2])
    assert not noise[1].any(), "another noise takes its place"


def test_masks_of_another_model_go_before(build, training_batch, monkeypatch):
    model = build(1.0)
    with EventStorage():
        batch = model.load_batch(training_batch)
        given = batch.masks & (torch.arange(3) == 1)[:, None, None]
        answers = batch.masks & (torch.arange(batch.masks.shape[-1]) > 4)
        # of the second, nothing is asked
        answer_with(monkeypatch, model, answers[[0, 2]])
        noise = model.model_noise(replace(batch, model_masks=given), model.generator())
    assert noise[1].equal(given[1]) and noise[[0, 2]].equal(answers[[0, 2]])


def test_without_it_the_decoder_is_not_asked(build, training_batch, monkeypatch):
    model = build(0.0)
    with EventStorage():
        batch = model.load_batch(training_batch)
        monkeypatch.setattr(model.refiner, "decode", None)
        assert model.model_noise(batch, model.generator()).equal(batch.model_masks)


def test_training_goes_on_with_it(build, training_batch):
    model = build(1.0)
    with EventStorage() as storage:
        losses = model(training_batch)
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
        assert "iou_noisy" in storage.latest()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
