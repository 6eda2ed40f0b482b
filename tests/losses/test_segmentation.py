"""Mask losses and the regression of the predicted IoU."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from phoenix_d2.losses.segmentation import dice_loss, focal_loss, iou_regression_loss

N, M, S = 3, 4, 6


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, soft targets, and valid pixels that differ from mask to mask."""
    logits = torch.randn(N, M, S, S, generator=generator)
    targets = torch.rand(N, S, S, generator=generator)
    valid = torch.zeros(N, S, S, dtype=torch.bool)
    for n, (height, width) in enumerate([(6, 6), (4, 6), (6, 3)]):
        valid[n, :height, :width] = True
    return logits, targets, valid


def iou_loss(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    return iou_regression_loss(torch.full(logits.shape[:2], 0.3), logits, targets, valid)


ALL_LOSSES = pytest.mark.parametrize("loss", [focal_loss, dice_loss, iou_loss])


@ALL_LOSSES
def test_padding_is_silent(loss, batch):
    logits, targets, valid = batch
    other_logits = torch.where(valid[:, None], logits, -7 * logits)
    other_targets = torch.where(valid, targets, 1 - targets)
    assert loss(logits, targets, valid).shape == (N, M)
    torch.testing.assert_close(loss(other_logits, other_targets, valid), loss(logits, targets, valid))


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_padding_gets_no_gradient(loss, batch):
    logits, targets, valid = batch
    logits.requires_grad_()
    loss(logits, targets, valid).sum().backward()
    assert not logits.grad.masked_select(~valid[:, None]).any()
    assert logits.grad.masked_select(valid[:, None]).all()


@ALL_LOSSES
def test_one_valid_mask_serves_all(loss, batch):
    logits, targets, valid = batch
    shared = valid[1:2]
    torch.testing.assert_close(loss(logits, targets, shared), loss(logits, targets, shared.expand(N, -1, -1)))


@ALL_LOSSES
def test_masks_are_independent(loss, batch):
    logits, targets, valid = batch
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(loss(logits[order], targets[order], valid[order]), loss(logits, targets, valid)[order])


@ALL_LOSSES
def test_no_masks(loss, batch):
    assert loss(*(tensor[:0] for tensor in batch)).shape == (0, M)


def test_focal_without_focus_is_cross_entropy(batch):
    logits, targets, _ = batch
    expected = F.binary_cross_entropy_with_logits(logits, targets[:, None].expand_as(logits), reduction="none")
    valid = torch.ones(1, S, S, dtype=torch.bool)
    torch.testing.assert_close(focal_loss(logits, targets, valid, alpha=-1, gamma=0), expected.mean(dim=(2, 3)))


def test_focal_of_undecided_logits():
    logits, valid = torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    targets = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    # half a pixel's probability is missing everywhere: (1/2)^2 log 2, weighted 1/4 once and 3/4 three times
    assert focal_loss(logits, targets, valid).item() == pytest.approx(0.25 * math.log(2) * (0.25 + 3 * 0.75) / 4)


def test_dice_of_perfect_and_opposite_predictions():
    targets = torch.zeros(1, 8, 8)
    targets[:, :4] = 1
    logits = 50 * (2 * targets[:, None] - 1)
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    losses = dice_loss(torch.cat([logits, -logits], dim=1), targets, valid)
    torch.testing.assert_close(losses, torch.tensor([[0.0, 1 - 1 / 65]]))


def test_dice_of_nothing_predicted_for_nothing():
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    losses = dice_loss(torch.full((1, 1, 8, 8), -50.0), torch.zeros(1, 8, 8), valid)
    torch.testing.assert_close(losses, torch.zeros(1, 1))


def test_dice_gradient(batch):
    logits, targets, valid = batch
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dice_loss(x, targets.double(), valid), logits)


def test_iou_regression_known_answer():
    logits = torch.tensor([[[[1.0, 1.0], [-1.0, -1.0]], [[1.0, -1.0], [1.0, 1.0]]]])
    targets = torch.tensor([[[0.9, 0.5], [0.4, 1.0]]])
    valid = torch.tensor([[[True, True], [True, False]]])
    predictions = torch.tensor([[0.5, 0.5]])
    # the last pixel is padding; the candidates reach IoU 1 and 1/3
    expected = torch.tensor([[0.25, (0.5 - 1 / 3) ** 2]])
    torch.testing.assert_close(iou_regression_loss(predictions, logits, targets, valid), expected)


def test_iou_regression_trains_the_prediction_alone(batch):
    logits, targets, valid = batch
    predictions = torch.full((N, M), 0.3, dtype=torch.float64, requires_grad=True)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: iou_regression_loss(x, logits, targets, valid), predictions)
    iou_regression_loss(predictions, logits, targets, valid).sum().backward()
    assert logits.grad is None
