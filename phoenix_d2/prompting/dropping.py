"""Leaving visual prompts out in training, so that the mask prompt alone must do (paper B.2)."""

from __future__ import annotations

import torch

from phoenix_d2.structures import Prompts


def drop_visual_prompts(prompts: Prompts, *, probability: float = 0.3, generator: torch.Generator) -> Prompts:
    """Pad away all points and the box of randomly drawn masks; the mask prompts stay (paper B.2).

    Args:
        prompts: prompts of N masks, with mask prompts.
        probability: of each mask, independently, to lose its visual prompts.
        generator: source of the draws; one draw a mask, whatever the probability.

    Raises:
        ValueError: the probability is not in [0, 1], or nothing would be left of a prompt.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"Probability {probability} of dropping visual prompts is not in [0, 1].")
    if prompts.mask_logits is None:
        raise ValueError("Without mask prompts nothing is left when visual prompts are dropped: turn mask prompts on.")
    draws = torch.rand(len(prompts), generator=generator, device=generator.device)
    return prompts.without_points((draws < probability).to(prompts.point_labels.device))
