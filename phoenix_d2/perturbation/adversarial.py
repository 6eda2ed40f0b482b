"""Adversarial mask perturbation (paper 3.3, Algorithm 1), batched over masks.

Shape letters: N masks, A masks whose attack goes on, P perturbation embeddings, C channels, s the side of the
low-resolution frame.

A frozen decoder is attacked through extra prompt embeddings: sign-gradient steps drive its mask to a guidance mask
until the IoU with the target lies in [threshold, threshold + margin). The decoder is a callable; nothing here knows
which one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.perturbation.criteria import get_criterion
from phoenix_d2.structures import PerturbationOutcome, PerturbationResult

Decode: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(embeddings (A, P, C), active (A,) long: which of the N masks they belong to) -> logits (A, s, s)."""


@torch.enable_grad()  # callers prepare noise under no_grad
def perturb_masks(
    decode: Decode,
    target_masks: Tensor,
    guidance: Tensor,
    *,
    iou_thresholds: Tensor,
    valid: Tensor | None,
    generator: torch.Generator,
    num_embeddings: int = 50,
    embed_dim: int = 256,
    init_std: float = 0.1,
    step_size: float = 0.01,
    step_decay: float = 0.1,
    max_steps: int = 10,
    max_decays: int = 3,
    iou_margin: float = 0.05,
    criterion: str = "dice",
) -> PerturbationResult:
    """Attack a decoder until its masks are as wrong as asked.

    Every step decodes all active masks at once; a mask that is finished leaves the batch. Only the embeddings receive
    gradients: the decoder's parameters and their `.grad` stay untouched. Call it outside of autocast: in half
    precision small gradients become zero and lose their sign.

    Args:
        decode: differentiable in the embeddings; see `Decode`.
        target_masks: (N, s, s) bool.
        guidance: (N, s, s) float in [0, 1], from `guidance.guidance_masks`.
        iou_thresholds: (N,) float, lower end of the IoU band of each mask.
        valid: (N, s, s) or (1, s, s) bool, the pixels that are image and not padding; all when None.
        generator: draws the initial embeddings, on its own device.
        num_embeddings: P (paper Figure 5c).
        embed_dim: C.
        init_std: standard deviation of the initial embeddings (paper B.2).
        step_size: alpha_0.
        step_decay: what an overshoot multiplies the step size of its mask by.
        max_steps: N of Algorithm 1, decodes in a round; a new round begins with each decay.
        max_decays: overshoots forgiven (not stated in the paper; our choice).
        iou_margin: epsilon, the width of the band.
        criterion: a name in `criteria.CRITERIA`.

    Returns:
        The last decoded mask of each target, nothing of it outside `valid`. `outcome` is one of `IN_BAND`,
        `STARTED_BELOW` (before any step), `EXHAUSTED_ABOVE` and `EXHAUSTED_BELOW`; `num_steps` counts undone steps too.

    Raises:
        ValueError: there is no criterion of that name.
    """
    distance = get_criterion(criterion)
    n, device = len(target_masks), target_masks.device
    valid = torch.ones_like(target_masks) if valid is None else valid.expand_as(target_masks)

    noise = torch.randn(n, num_embeddings, embed_dim, generator=generator, device=generator.device)
    embeddings = init_std * noise.to(device)
    previous, direction = embeddings.clone(), torch.zeros_like(embeddings)
    step_sizes = torch.full((n, 1, 1), step_size, device=device)
    round_decodes, num_decays, num_steps, outcome = torch.zeros(4, n, dtype=torch.long, device=device)
    masks, iou = torch.zeros_like(target_masks), torch.zeros(n, device=device)

    active = torch.arange(n, device=device)
    while len(active):
        current = embeddings[active].requires_grad_()
        logits = decode(current, active)
        round_decodes[active] += 1
        masks[active] = (logits.detach() > 0) & valid[active]
        iou[active] = mask_iou(masks[active], target_masks[active], valid[active])

        below = iou[active] < iou_thresholds[active]
        above = ~below & (iou[active] >= iou_thresholds[active] + iou_margin)
        moved = num_steps[active] > 0
        outcome[active] = _outcome(below, above, moved)

        # Algorithm 1 would step after the last decode of a round as well, but never decodes the result
        advancing = above & (round_decodes[active] < max_steps)
        if advancing.any():
            objective = -(distance(logits, guidance[active], valid[active]) * advancing).sum()
            (gradient,) = torch.autograd.grad(objective, current)
            stepping = advancing[:, None, None]
            previous[active] = torch.where(stepping, embeddings[active], previous[active])
            direction[active] = torch.where(stepping, gradient.sign(), direction[active])

        # an overshoot goes back to the state before the last step; Algorithm 1 decodes it again, for a gradient that is
        # still at hand: that decode counts as the first of the new round, and is spared
        returning = below & moved & (num_decays[active] < max_decays)
        step_sizes[active] *= torch.where(returning, step_decay, 1.0)[:, None, None]
        num_decays[active] += returning
        round_decodes[active] = torch.where(returning, 1, round_decodes[active])

        active = active[advancing | returning]
        embeddings[active] = previous[active] + step_sizes[active] * direction[active]
        num_steps[active] += 1
    return PerturbationResult(masks, iou, num_steps, outcome)


def _outcome(below: Tensor, above: Tensor, moved: Tensor) -> Tensor:
    """What it would mean to stop here: (A,) long, values of `PerturbationOutcome`."""
    result = torch.full_like(below, PerturbationOutcome.IN_BAND, dtype=torch.long)
    result[above] = PerturbationOutcome.EXHAUSTED_ABOVE
    result[below & moved] = PerturbationOutcome.EXHAUSTED_BELOW
    result[below & ~moved] = PerturbationOutcome.STARTED_BELOW
    return result
