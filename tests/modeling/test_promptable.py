"""META_ARCH PromptableDecoder: its first prompts, its corrections, its rounds."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from phoenix_d2.structures import PointLabel

POINT, BOX, MASK = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
PADDING = int(PointLabel.PADDING)


@pytest.fixture
def build(cfg):
    def build_promptable(*overrides):
        cfg.MODEL.META_ARCHITECTURE = "PromptableDecoder"
        cfg.merge_from_list(list(overrides))
        torch.manual_seed(0)
        return build_model(cfg).train()

    return build_promptable


@pytest.fixture
def first_prompts(build, training_batch):
    def make(probabilities, *overrides):
        model = build("MODEL.PHOENIX.PRETRAIN.PROMPT_PROBS", probabilities, *overrides)
        with EventStorage():
            batch = model.load_batch(training_batch)
            return batch, *model._first_prompts(batch, model.generator())

    return make


def low_res_pixels(coords, stride=4):
    """(..., 2) long pixels that hold points given as segment-anything takes them."""
    return ((coords + 0.5) / stride).floor().long()


def test_a_point_lies_on_its_object(first_prompts):
    batch, prompts, has_mask, _ = first_prompts(POINT)
    assert not has_mask.any()
    assert prompts.point_labels[:, 0].tolist() == [PointLabel.FOREGROUND] * 3
    assert (prompts.point_labels[:, 1:] == PADDING).all()
    x, y = low_res_pixels(prompts.point_coords[:, 0]).unbind(-1)
    assert batch.masks[torch.arange(3), y, x].all()


def test_a_box_is_that_of_its_object_but_for_jitter(first_prompts):
    _, prompts, has_mask, _ = first_prompts(BOX)
    assert not has_mask.any()
    labels = [PADDING, PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT]
    assert prompts.point_labels[:, :3].tolist() == [labels] * 3
    assert (prompts.point_labels[:, 3:] == PADDING).all()
    boxes = torch.tensor([[8, 8, 48, 56], [64, 16, 112, 72], [20, 30, 100, 90]])
    offsets = prompts.point_coords[:, 1:3].flatten(1) + 0.5 - boxes
    # a low-resolution pixel of four for the border, and twenty for the noise
    assert 0 < offsets.abs().max() <= 24


def test_a_coarse_mask_comes_with_what_the_prompter_derives(first_prompts):
    batch, prompts, has_mask, coarse = first_prompts(MASK, "MODEL.PHOENIX.PROMPT.DROP_PROB", 0.0)
    assert has_mask.all()
    assert (prompts.point_labels[:, :3] == PADDING).all()
    assert prompts.point_labels[:, 3].tolist() == [PointLabel.FOREGROUND] * 3
    assert torch.equal(prompts.mask_logits[:, 0] > 0, coarse)
    assert not torch.equal(coarse, batch.masks)


def test_prompts_of_a_coarse_mask_are_derived_as_in_use(build, training_batch):
    model = build(
        *("MODEL.PHOENIX.PRETRAIN.PROMPT_PROBS", MASK, "MODEL.PHOENIX.PROMPT.DROP_PROB", 0.0),
        *("MODEL.PHOENIX.PROMPT.BOX_GROWTH", 0.5, "MODEL.PHOENIX.PROMPT.COMPAT", "samrefiner"),
    )
    with EventStorage():
        batch = model.load_batch(training_batch)
        prompts, _, coarse = model._first_prompts(batch, model.generator())
    expected = model.refiner.derive_prompts(coarse.float(), batch.embeddings, batch.valid)
    assert prompts.point_coords[:, 3:].equal(expected.point_coords)
    assert prompts.mask_logits.equal(expected.mask_logits)


def test_visual_prompts_of_a_coarse_mask_may_be_dropped(first_prompts):
    _, prompts, has_mask, _ = first_prompts(MASK, "MODEL.PHOENIX.PROMPT.DROP_PROB", 1.0)
    assert has_mask.all()
    assert (prompts.point_labels == PADDING).all()


def test_a_correction_lies_where_the_mask_is_wrong_and_says_how(build, training_batch):
    model = build()
    with EventStorage():
        batch = model.load_batch(training_batch)
        prompts, _, _ = model._first_prompts(batch, model.generator())
        logits = torch.where(batch.masks, 100.0, -100.0)
        logits[0, 2:4, 2:4] = -100  # missed
        logits[1, 0:2, 0:2] = 100  # invented
        corrected = model._correct(prompts, logits, batch, model.generator())
    assert corrected.point_labels.shape[1] == prompts.point_labels.shape[1] + 1
    xy = low_res_pixels(corrected.point_coords[:, -1]).tolist()
    labels = corrected.point_labels[:, -1].tolist()
    assert labels == [PointLabel.FOREGROUND, PointLabel.BACKGROUND, PointLabel.FOREGROUND]
    assert all(value in (2, 3) for value in xy[0])
    assert all(value in (0, 1) for value in xy[1])
    # nothing is wrong with the last one: any point of the object
    assert batch.masks[2, xy[2][1], xy[2][0]]
    assert corrected.mask_logits.abs().max() == model.refiner.prompter.mask_scale


def test_an_error_in_the_padding_is_none(build, training_batch):
    model = build()
    with EventStorage():
        batch = model.load_batch(training_batch)
        prompts, _, _ = model._first_prompts(batch, model.generator())
        logits = torch.where(batch.masks | ~batch.valid, 1.0, -1.0)
        corrected = model._correct(prompts, logits, batch, model.generator())
    assert corrected.point_labels[:, -1].tolist() == [PointLabel.FOREGROUND] * 3


def test_every_round_adds_a_point_and_the_mask_before(build, training_batch):
    model = build("MODEL.PHOENIX.PRETRAIN.PROMPT_PROBS", POINT, "MODEL.PHOENIX.PRETRAIN.ROUNDS", 3)
    decode, seen = model._decode, []

    def spy(batch, prompts, has_mask):
        seen.append((prompts.point_labels.shape[1], has_mask.tolist()))
        return decode(batch, prompts, has_mask)

    model._decode = spy
    with EventStorage() as storage:
        model(training_batch)
    points = seen[0][0]
    assert seen == [(points, [False] * 3), (points + 1, [True] * 3), (points + 2, [True] * 3)]
    assert {f"iou_round_{turn}" for turn in range(3)} <= set(storage.latest())


def test_losses_are_means_over_the_rounds(build, training_batch):
    model = build()
    criterion, losses = model.criterion, []

    def spy(*args, **kwargs):
        result = criterion(*args, **kwargs)
        losses.append(result[0])
        return result

    del model.criterion
    model.criterion = spy
    with EventStorage():
        total = model(training_batch)
    assert set(total) == {"loss_focal", "loss_dice", "loss_iou"}
    for name, value in total.items():
        torch.testing.assert_close(value, torch.stack([part[name] for part in losses]).mean())


@pytest.mark.parametrize("probabilities", [POINT, BOX, MASK])
@pytest.mark.parametrize(
    "trainable", [("mask_decoder",), ("image_encoder", "prompt_encoder", "mask_decoder")], ids=["decoder", "all"]
)
def test_every_trainable_parameter_gets_a_gradient_and_no_other(
    build, training_batch, probabilities, trainable, device
):
    model = build(
        *("MODEL.PHOENIX.PRETRAIN.PROMPT_PROBS", probabilities, "MODEL.PHOENIX.TRAINABLE", trainable),
        *("MODEL.DEVICE", device),
    )
    with EventStorage():
        losses = model(training_batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if (p.grad is not None) != p.requires_grad]
    trained = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(trainable)


def test_gradients_without_a_single_mask(build, training_batch, device):
    for inputs in training_batch:
        inputs["instances"] = inputs["instances"][:0]
    model = build("MODEL.DEVICE", device)
    with EventStorage():
        losses = model(training_batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert not [name for name, p in model.named_parameters() if (p.grad is not None) != p.requires_grad]


def test_same_seed_same_losses(build, training_batch):
    model = build()
    results = []
    for iteration in (0, 0, 1):
        with EventStorage(iteration):
            results.append(model(training_batch))
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("probabilities", [(1.0, 0.0), (0.0, 0.0, 0.0), (1.0, -0.5, 0.5)])
def test_probabilities_that_are_none(build, probabilities):
    with pytest.raises(ValueError, match="three weights"):
        build("MODEL.PHOENIX.PRETRAIN.PROMPT_PROBS", probabilities)


@pytest.mark.parametrize("key", ["ROUNDS", "PROMPTS_PER_MASK"])
def test_no_passes_or_no_prompts(build, key):
    with pytest.raises(ValueError, match=key.lower()):
        build(f"MODEL.PHOENIX.PRETRAIN.{key}", 0)
