"""SAMRefiner (Lin et al. 2025): a promptable decoder that was never trained to refine, asked in the right way."""

from __future__ import annotations

from dataclasses import replace

from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.prompting import CoarseMaskPrompter

_NUM_ITERS = 5


def training_free(refiner: PhoenixRefiner) -> PhoenixRefiner:
    """Use a refiner's network as SAMRefiner uses SAM: its prompts, five passes, and nothing rejected.

    Args:
        refiner: whose decoder was pre-trained as a promptable one, and no further; changed in place.
    """
    refiner.refiner.prompter = CoarseMaskPrompter(compat="samrefiner")
    refiner.refiner.options = replace(
        refiner.options, num_iters=_NUM_ITERS, candidate="best", color_weight=0.0, gate="off"
    )
    return refiner
