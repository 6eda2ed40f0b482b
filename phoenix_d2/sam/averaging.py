"""Averages of the weights of refiners that were trained from one another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from phoenix_d2.refiner import MaskRefiner
from phoenix_d2.sam.checkpoint import trained_state_dict


@torch.no_grad()
def average_weights(refiners: Sequence[MaskRefiner], shares: Sequence[float]) -> MaskRefiner:
    """Average the trained weights of refiners, one of which was fine-tuned from the other.

    Between a network and its fine-tuned self often lies one that does what each of them does well (Wortsman et al.,
    "Robust fine-tuning of zero-shot models", CVPR 2022).

    Args:
        refiners: of one architecture.
        shares: one each, not negative, adding up to 1.

    Returns:
        The last refiner, its weights changed in place, without its gate, which knew other weights.

    Raises:
        ValueError: shares are not as described, or the refiners differ in encoder or shapes.
    """
    if len(shares) != len(refiners) or min(shares, default=-1) < 0 or not math.isclose(sum(shares), 1):
        raise ValueError(f"Shares {list(shares)} of {len(refiners)} refiners: expected one each that add up to 1.")
    parts = [trained_state_dict(refiner) for refiner in refiners]
    last, averaged = parts[-1], refiners[-1]
    for refiner, part in zip(refiners, parts, strict=True):
        alike = part.keys() == last.keys() and all(part[name].shape == last[name].shape for name in last)
        if refiner.encoder_name != averaged.encoder_name or not alike:
            raise ValueError(
                f"A refiner with the encoder {refiner.encoder_name!r} and one with {averaged.encoder_name!r} differ in "
                "their weights: average those that were trained from one another."
            )
    mean = {
        name: torch.stack([share * part[name].double() for share, part in zip(shares, parts, strict=True)]).sum(0)
        for name in last
    }
    averaged.load_state_dict(mean, strict=False)
    averaged.gate = None
    return averaged
