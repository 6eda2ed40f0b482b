"""Codings of a coarse mask as SAM's dense prompt, all in the low-resolution frame.

The paper does not state its coding. `gaussian` is SAMRefiner's and suits SAM's own weights; a decoder
that is trained on its own noise can read the plainer ones.
"""

from __future__ import annotations

import torch
from torch import Tensor


def logit_prompt(soft_masks: Tensor, *, scale: float = 10.0) -> Tensor:
    """Coverage as a logit: +-`scale` in pure pixels, 0 where half a pixel is covered (our choice).

    Args:
        soft_masks: (N, s, s) float in [0, 1].
        scale: the logit of a pixel that is covered whole.

    Returns:
        (N, 1, s, s) float.
    """
    return soft_masks[:, None].mul(2 * scale).sub_(scale)


def binary_prompt(masks: Tensor) -> Tensor:
    """(N, s, s) bool masks as (N, 1, s, s) float32 zeros and ones."""
    return masks[:, None].float()


def gaussian_prompt(
    masks: Tensor, foreground_depths: Tensor, *, amplitude: float | Tensor = 30.0, gamma: float = 4.0
) -> Tensor:
    """Sure at the deepest point of the mask, less so towards its rim; sure of the background everywhere.

    SAMRefiner's mask prompt. The width of the bell follows the size of the mask, so that the coding of
    an object does not depend on its scale.

    Args:
        masks: (N, s, s) bool.
        foreground_depths: (N, s, s) float, distance of mask pixels to the background.
        amplitude: logit of the deepest point, minus the logit of the background; may be (N,).
        gamma: how many times narrower than the area of the mask the squared bell is.

    Returns:
        (N, 1, s, s) float.
    """
    area = masks.sum(dim=(1, 2), keepdim=True)
    below_deepest = foreground_depths - foreground_depths.amax(dim=(1, 2), keepdim=True)
    bell = torch.exp(-below_deepest.square() / (area / gamma).clamp(min=1))
    strength = torch.as_tensor(amplitude, device=masks.device).view(-1, 1, 1)
    return (strength * torch.where(masks, bell, -1.0))[:, None]
