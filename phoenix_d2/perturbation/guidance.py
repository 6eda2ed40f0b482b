"""Guidance masks: the shape that an attack drives the decoded mask to (paper 3.3, Figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor


class Guide(IntEnum):
    """The direction of a perturbation, and so the kind of error that it makes."""

    EXPANSION = 0
    """All ones: false positives."""
    CONTRACTION = 1
    """All zeros: false negatives."""
    INVERSION = 2
    """The complement of the target: both."""


ALL_GUIDES = tuple(guide.name.lower() for guide in Guide)
"""The names of all guides, in their order."""


def guidance_masks(target_masks: Tensor, guides: Tensor) -> Tensor:
    """Guidance mask of each target.

    Args:
        target_masks: (N, s, s) bool.
        guides: (N,) long, values of `Guide`.

    Returns:
        (N, s, s) float32, 0 or 1.
    """
    guides = guides[:, None, None]
    return torch.where(guides == Guide.INVERSION, ~target_masks, guides == Guide.EXPANSION).float()


def draw_guides(
    num_masks: int, choices: Sequence[Guide], *, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Draw a guide for each mask, uniformly among `choices`: (num_masks,) long on `device`."""
    index = torch.randint(len(choices), (num_masks,), generator=generator, device=generator.device)
    return torch.tensor(choices, dtype=torch.long, device=device)[index.to(device)]
