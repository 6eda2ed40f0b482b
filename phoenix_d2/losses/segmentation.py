"""Mask losses of each candidate, and the regression of its predicted IoU.

Nothing is averaged over masks or candidates here: the criterion first chooses which candidates are
trained. Every function counts valid pixels only, so the padding of the square frame is silent.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from phoenix_d2.ops.masks import mask_iou


def focal_loss(logits: Tensor, targets: Tensor, valid: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss, mean over the valid pixels.

    The paper names the loss and its weight but neither `alpha` nor `gamma`: they are our choice, the
    values of the focal loss paper, as SAM uses them.

    Args:
        logits: (N, M, s, s) float, M candidates a mask.
        targets: (N, s, s) float in [0, 1], share of each pixel that the target covers.
        valid: (N, s, s) or (1, s, s) bool, pixels that are image and not padding.
        alpha: weight of the foreground, 1 - alpha that of the background; negative weighs neither.
        gamma: how strongly pixels that are already right are played down; 0 is cross-entropy.

    Returns:
        (N, M) float32.
    """
    targets = targets[:, None].expand_as(logits)
    losses = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma, reduction="none")
    return _valid_sum(losses, valid) / valid.sum(dim=(1, 2))[:, None]


def dice_loss(logits: Tensor, targets: Tensor, valid: Tensor, *, eps: float = 1.0) -> Tensor:
    """One minus the soft Dice coefficient over the valid pixels.

    Args:
        logits: (N, M, s, s) float, M candidates a mask.
        targets: (N, s, s) float in [0, 1], share of each pixel that the target covers.
        valid: (N, s, s) or (1, s, s) bool, pixels that are image and not padding.
        eps: pixels added to both sides of the fraction; an empty prediction of an empty target then costs 0.

    Returns:
        (N, M) float in [0, 1).
    """
    probabilities, targets = logits.sigmoid(), targets[:, None]
    overlap = _valid_sum(probabilities * targets, valid)
    area = _valid_sum(probabilities, valid) + _valid_sum(targets, valid)
    return 1 - (2 * overlap + eps) / (area + eps)


def iou_regression_loss(iou_predictions: Tensor, logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Squared error of the predicted IoU (our term: inference selects the candidate by this prediction).

    Args:
        iou_predictions: (N, M) float, the decoder's estimates.
        logits: (N, M, s, s) float; their sign is the mask, and no gradient reaches them.
        targets: (N, s, s) float in [0, 1]; at least half a pixel covered is foreground.
        valid: (N, s, s) or (1, s, s) bool, pixels that are image and not padding.

    Returns:
        (N, M) float.
    """
    target_masks = targets >= 0.5
    real_iou = torch.stack([mask_iou(masks, target_masks, valid) for masks in (logits > 0).unbind(dim=1)], dim=1)
    return (iou_predictions - real_iou) ** 2


def _valid_sum(values: Tensor, valid: Tensor) -> Tensor:
    """(N, M) sums of (N, M, s, s) values over the valid pixels."""
    return values.masked_fill(~valid[:, None], 0).sum(dim=(2, 3))
