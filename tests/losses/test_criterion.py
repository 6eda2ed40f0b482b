"""Which losses a decoder pass has, what they weigh, and what is reported beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from phoenix_d2.losses.criterion import RefinementCriterion
from phoenix_d2.losses.projector import Projector
from phoenix_d2.losses.regions import RefinementRegions
from phoenix_d2.losses.segmentation import dice_loss, focal_loss
from phoenix_d2.structures import MaskPrediction

N, M, C, S = 3, 4, 8, 10
MASK_LOSSES = {"loss_focal", "loss_dice", "loss_iou"}
CMRL_LOSSES = {"loss_cmrl_intra", "loss_cmrl_inter", "loss_cmrl_self"}
BEST = [3, 1, 2]
"""Multimask candidate of each mask that is made to resemble its target most."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch() -> tuple[MaskPrediction, Tensor, Tensor, Tensor]:
    generator = seeded()
    targets = torch.zeros(N, S, S)
    targets[:, 2:7, 1:8] = 1
    valid = torch.ones(1, S, S, dtype=torch.bool)
    valid[:, 8:] = False
    noisy_masks = (targets > 0) ^ (torch.rand(N, S, S, generator=generator) > 0.7)
    logits = torch.randn(N, M, S, S, generator=generator)
    logits[range(N), BEST] += 2 * targets - 1
    iou_predictions = torch.rand(N, M, generator=generator)
    features = torch.randn(N, C, S, S, generator=generator)
    prediction = MaskPrediction(logits.requires_grad_(), iou_predictions.requires_grad_(), features.requires_grad_())
    return prediction, targets, noisy_masks, valid


def make_criterion(**settings: Any) -> RefinementCriterion:
    torch.manual_seed(0)
    return RefinementCriterion(projector=Projector(C), **settings)


def test_keys_with_and_without_cmrl():
    prediction, targets, noisy_masks, valid = make_batch()
    regions = {f"region_{name}" for name in RefinementRegions._fields}
    gains = {"iou_noisy", "iou_refined", "iou_gain"}

    losses, diagnostics = make_criterion()(prediction, targets, noisy_masks, valid, generator=seeded())
    assert losses.keys() == MASK_LOSSES | CMRL_LOSSES
    assert diagnostics.keys() == gains | regions
    assert all(value.ndim == 0 and value.isfinite() for value in (losses | diagnostics).values())
    assert all(loss.requires_grad for loss in losses.values())
    assert not any(value.requires_grad for value in diagnostics.values())

    losses, diagnostics = make_criterion(cmrl_weight=0)(prediction, targets, noisy_masks, valid, generator=seeded())
    assert losses.keys() == MASK_LOSSES
    assert diagnostics.keys() == gains | regions


def test_the_estimate_of_the_noisy_masks_iou_is_trained():
    prediction, targets, noisy_masks, valid = make_batch()
    noisy_masks = (targets > 0) & (torch.arange(S)[:, None] < 4)
    # of each target's rows 2 to 6, the noisy mask has the first two
    estimates = torch.full((N,), 0.9, requires_grad=True)
    prediction = replace(prediction, prompt_iou_predictions=estimates)
    losses, _ = make_criterion(iou_weight=3.0)(prediction, targets, noisy_masks, valid, generator=seeded())
    torch.testing.assert_close(losses["loss_prompt_iou"], torch.tensor(3 * (0.9 - 0.4) ** 2))
    losses["loss_prompt_iou"].backward()
    torch.testing.assert_close(estimates.grad, torch.full((N,), 3 * 2 * 0.5 / N))


@pytest.mark.parametrize("train_single_mask", [True, False])
def test_trains_the_best_multimask_candidate(train_single_mask):
    prediction, targets, noisy_masks, valid = make_batch()
    criterion = make_criterion(train_single_mask=train_single_mask)
    losses, _ = criterion(prediction, targets, noisy_masks, valid, generator=seeded())
    (losses["loss_focal"] + losses["loss_dice"]).backward()
    trained = torch.zeros(N, M, dtype=torch.bool)
    trained[range(N), BEST] = True
    trained[:, 0] = train_single_mask
    assert torch.equal(prediction.low_res_logits.grad.flatten(2).any(dim=2), trained)


def test_a_good_single_mask_candidate_is_no_multimask_candidate():
    prediction, targets, noisy_masks, valid = make_batch()
    with torch.no_grad():
        prediction.low_res_logits[:, 0] = 20 * (2 * targets - 1)
    criterion = make_criterion(train_single_mask=False)
    losses, _ = criterion(prediction, targets, noisy_masks, valid, generator=seeded())
    expected = dice_loss(prediction.low_res_logits, targets, valid)[range(N), BEST].mean()
    torch.testing.assert_close(losses["loss_dice"], expected)


def test_trains_the_iou_prediction_of_every_candidate():
    prediction, targets, noisy_masks, valid = make_batch()
    losses, _ = make_criterion()(prediction, targets, noisy_masks, valid, generator=seeded())
    losses["loss_iou"].backward()
    assert prediction.iou_predictions.grad.all()
    assert prediction.low_res_logits.grad is None


def test_mask_losses_are_weighted_means():
    prediction, targets, noisy_masks, valid = make_batch()
    logits = prediction.low_res_logits
    losses, _ = make_criterion()(prediction, targets, noisy_masks, valid, generator=seeded())
    focal, dice = focal_loss(logits, targets, valid), dice_loss(logits, targets, valid)
    torch.testing.assert_close(losses["loss_focal"], 20 * (focal[range(N), BEST] + focal[:, 0]).mean() / 2)
    torch.testing.assert_close(losses["loss_dice"], (dice[range(N), BEST] + dice[:, 0]).mean() / 2)


@pytest.mark.parametrize(
    ("weight", "keys"),
    [
        ("focal_weight", {"loss_focal"}),
        ("dice_weight", {"loss_dice"}),
        ("iou_weight", {"loss_iou"}),
        ("cmrl_weight", CMRL_LOSSES),
        ("intra_weight", {"loss_cmrl_intra"}),
        ("inter_weight", {"loss_cmrl_inter"}),
        ("self_weight", {"loss_cmrl_self"}),
    ],
)
def test_each_weight_scales_its_own_losses(weight, keys):
    batch = make_batch()
    once, _ = make_criterion(**{weight: 0.5})(*batch, generator=seeded())
    twice, _ = make_criterion(**{weight: 1.0})(*batch, generator=seeded())
    for key, loss in once.items():
        torch.testing.assert_close(twice[key], 2 * loss if key in keys else loss)


def test_settings_reach_the_contrastive_loss():
    batch = make_batch()
    default, _ = make_criterion()(*batch, generator=seeded())
    for settings in (
        {"temperature": 0.5},
        {"num_samples": 2},
        {"num_self_samples": 2},
        {"inter_form": "softplus"},
        {"count_new_errors": True},
    ):
        losses, _ = make_criterion(**settings)(*batch, generator=seeded())
        assert any(losses[key] != default[key] for key in CMRL_LOSSES), settings


def test_cmrl_trains_the_projector_and_the_features_alone():
    prediction, targets, noisy_masks, valid = make_batch()
    criterion = make_criterion()
    losses, _ = criterion(prediction, targets, noisy_masks, valid, generator=seeded())
    sum(losses[key] for key in CMRL_LOSSES).backward()
    assert prediction.features.grad.any()
    assert prediction.low_res_logits.grad is None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in criterion.parameters())


def test_projector_is_not_run_without_cmrl():
    class Unused(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            raise AssertionError("the projector was run")

    prediction, targets, noisy_masks, valid = make_batch()
    generator = seeded()
    state = generator.get_state()
    RefinementCriterion(projector=Unused(), cmrl_weight=0)(prediction, targets, noisy_masks, valid, generator=generator)
    assert torch.equal(generator.get_state(), state)


def test_diagnostics_follow_the_predicted_iou():
    prediction, targets, _, valid = make_batch()
    with torch.no_grad():
        prediction.low_res_logits[:, 2] = 2 * targets - 1
        prediction.low_res_logits[:, [0, 1, 3]] = -1
        prediction.iou_predictions[:] = torch.tensor([0.9, 0.1, 0.2, 0.0])
    noisy_masks = torch.zeros(N, S, S, dtype=torch.bool)
    noisy_masks[:, 2:7, 1:4] = True
    _, diagnostics = make_criterion()(prediction, targets, noisy_masks, valid, generator=seeded())
    assert diagnostics["iou_refined"] == 1
    assert diagnostics["iou_noisy"].item() == pytest.approx(3 / 7)
    assert diagnostics["iou_gain"].item() == pytest.approx(4 / 7)
    assert diagnostics["region_success_fg"].item() == pytest.approx(5 * 4 / 80)
    assert diagnostics["region_true_fg"].item() == pytest.approx(5 * 3 / 80)
    assert diagnostics["region_true_bg"].item() == pytest.approx((80 - 35) / 80)


def test_regions_follow_the_least_mask_loss():
    prediction, targets, _, valid = make_batch()
    with torch.no_grad():
        prediction.low_res_logits[:, 1] = 2 * targets - 1
        prediction.low_res_logits[:, [0, 2, 3]] = -1
        prediction.iou_predictions[:] = torch.tensor([0.9, 0.1, 0.2, 0.3])
    nothing = torch.zeros(N, S, S, dtype=torch.bool)
    _, diagnostics = make_criterion()(prediction, targets, nothing, valid, generator=seeded())
    assert diagnostics["iou_refined"] == 0
    assert diagnostics["region_failure_fg"] == 0
    assert diagnostics["region_success_fg"].item() == pytest.approx(35 / 80)


def test_padding_is_silent():
    prediction, targets, noisy_masks, valid = make_batch()
    outside = ~valid
    other = MaskPrediction(
        torch.where(outside[:, None], 5.0, prediction.low_res_logits),
        prediction.iou_predictions,
        torch.where(outside[:, None], -2.0, prediction.features),
    )
    expected = make_criterion()(prediction, targets, noisy_masks, valid, generator=seeded())
    got = make_criterion()(other, targets.masked_fill(outside, 1), noisy_masks | outside, valid, generator=seeded())
    torch.testing.assert_close(got, expected)


def test_seeds_repeat():
    batch = make_batch()
    criterion = make_criterion(num_samples=2, num_self_samples=2)
    first, again, other = (criterion(*batch, generator=seeded(seed))[0] for seed in (1, 1, 2))
    assert first == again
    assert all(first[key] != other[key] for key in CMRL_LOSSES)


def test_float32_under_autocast():
    def losses_and_gradient(*, autocast: bool) -> tuple[dict[str, Tensor], Tensor]:
        prediction, targets, noisy_masks, valid = make_batch()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            losses, _ = make_criterion()(prediction, targets, noisy_masks, valid, generator=seeded())
        sum(losses.values()).backward()
        return losses, prediction.features.grad

    got = losses_and_gradient(autocast=True)
    assert all(loss.dtype == torch.float32 for loss in got[0].values())
    torch.testing.assert_close(got, losses_and_gradient(autocast=False), rtol=0, atol=0)


def test_half_precision_predictions_are_raised_to_float32():
    prediction, targets, noisy_masks, valid = make_batch()
    half = MaskPrediction(
        prediction.low_res_logits.half(), prediction.iou_predictions.half(), prediction.features.half()
    )
    losses, _ = make_criterion()(half, targets, noisy_masks, valid, generator=seeded())
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_no_masks():
    prediction, targets, noisy_masks, valid = make_batch()
    none = MaskPrediction(prediction.low_res_logits[:0], prediction.iou_predictions[:0], prediction.features[:0])
    losses, diagnostics = make_criterion()(none, targets[:0], noisy_masks[:0], valid, generator=seeded())
    assert all(value == 0 for value in (losses | diagnostics).values())
    sum(losses.values()).backward()


def test_unknown_inter_form():
    with pytest.raises(ValueError, match="'log_sum_exp'"):
        make_criterion(inter_form="log_sum_exp")


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature 0"):
        make_criterion(temperature=0)
