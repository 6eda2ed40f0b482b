"""Adversarial criteria."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from phoenix_d2.perturbation.criteria import CRITERIA, bce, dice, focal, get_criterion, l1, mse

NAMES = ["dice", "l1", "mse", "bce", "focal"]


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def valid() -> torch.Tensor:
    valid = torch.zeros(3, 8, 8, dtype=torch.bool)
    valid[:, :6, :7] = True
    return valid


def test_the_five_of_the_paper() -> None:
    assert sorted(CRITERIA) == sorted(NAMES)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'iou'.*dice, l1, mse, bce, focal"):
        get_criterion("iou")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_gradient_points_downhill_to_the_guidance(
    name: str, level: float, logits: torch.Tensor, valid: torch.Tensor
) -> None:
    guidance = torch.full_like(logits, level)
    leaf = logits.clone().requires_grad_()
    loss = CRITERIA[name](leaf, guidance, valid)
    assert loss.shape == (3,)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert (gradient[valid].sign() == (-1 if level else 1)).all()
    assert (CRITERIA[name](logits - gradient, guidance, valid) < loss).all()


@pytest.mark.parametrize("name", NAMES)
def test_only_valid_pixels_count(name: str, logits: torch.Tensor, valid: torch.Tensor) -> None:
    guidance = (torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    loss = CRITERIA[name](logits, guidance, valid)
    changed = CRITERIA[name](torch.where(valid, logits, -9 * logits), torch.where(valid, guidance, 1 - guidance), valid)
    torch.testing.assert_close(changed, loss)


@pytest.mark.parametrize("name", NAMES)
def test_masks_do_not_mix(name: str, logits: torch.Tensor, valid: torch.Tensor) -> None:
    guidance = (logits > 0.3).float()
    together = CRITERIA[name](logits, guidance, valid)
    alone = [CRITERIA[name](logits[i : i + 1], guidance[i : i + 1], valid[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_known_values() -> None:
    logits = torch.zeros(1, 2, 2)
    guidance = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    torch.testing.assert_close(l1(logits, guidance, valid), torch.tensor([0.5]))
    torch.testing.assert_close(mse(logits, guidance, valid), torch.tensor([0.25]))
    torch.testing.assert_close(bce(logits, guidance, valid), torch.tensor([2.0]).log())
    torch.testing.assert_close(focal(logits, guidance, valid), 0.25 * torch.tensor([2.0]).log())
    # overlap 1, areas 2 and 2, one pixel of smoothing
    torch.testing.assert_close(dice(logits, guidance, valid), torch.tensor([1 - 3 / 5]))


def test_bce_is_stable_at_large_logits() -> None:
    logits = torch.full((1, 2, 2), 200.0, requires_grad=True)
    loss = bce(logits, torch.zeros(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool))
    torch.testing.assert_close(loss, F.softplus(torch.tensor([200.0])))
