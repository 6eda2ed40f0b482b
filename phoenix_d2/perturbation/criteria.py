"""Adversarial criteria: how far a decoded mask is from the guidance mask it is driven to (paper Table 4b).

Every criterion takes logits (N, s, s), guidance (N, s, s) float in [0, 1] and valid (N, s, s) bool (the pixels that
count), and returns one loss a mask, (N,). Only the sign of its gradient moves the attack, so scales do not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

Criterion: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


def dice(logits: Tensor, guidance: Tensor, valid: Tensor) -> Tensor:
    """One minus the soft Dice coefficient.

    The smoothing of one pixel is more than a guard: under an empty guidance mask (contraction) all of the gradient
    comes from it.
    """
    probability, guidance = logits.sigmoid() * valid, guidance * valid
    overlap = (probability * guidance).flatten(1).sum(1)
    total = probability.flatten(1).sum(1) + guidance.flatten(1).sum(1)
    return 1 - (2 * overlap + 1) / (total + 1)


def l1(logits: Tensor, guidance: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error of the probabilities."""
    return _valid_mean((logits.sigmoid() - guidance).abs(), valid)


def mse(logits: Tensor, guidance: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error of the probabilities."""
    return _valid_mean((logits.sigmoid() - guidance).square(), valid)


def bce(logits: Tensor, guidance: Tensor, valid: Tensor) -> Tensor:
    """Mean binary cross entropy."""
    return _valid_mean(F.binary_cross_entropy_with_logits(logits, guidance, reduction="none"), valid)


def focal(logits: Tensor, guidance: Tensor, valid: Tensor) -> Tensor:
    """Mean focal loss (gamma 2); the classes are not weighted, so that no guide is stronger on one side."""
    return _valid_mean(sigmoid_focal_loss(logits, guidance, alpha=-1), valid)


CRITERIA: dict[str, Criterion] = {"dice": dice, "l1": l1, "mse": mse, "bce": bce, "focal": focal}


def get_criterion(name: str) -> Criterion:
    """The criterion of that name.

    Raises:
        ValueError: there is none; the message lists the known ones.
    """
    if name not in CRITERIA:
        raise ValueError(f"Unknown adversarial criterion {name!r}: expected one of {', '.join(CRITERIA)}.")
    return CRITERIA[name]


def _valid_mean(values: Tensor, valid: Tensor) -> Tensor:
    return (values * valid).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
