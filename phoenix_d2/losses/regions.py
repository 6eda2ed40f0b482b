"""The six regions of contrastive refinement learning (paper 3.4): what became of each pixel."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RefinementRegions(NamedTuple):
    """Six exclusive regions of N masks, each (N, s, s) bool and empty in the padding.

    `true`: right before and after; `success`: an error of the noisy mask that the refiner mended;
    `failure`: one that it did not. Foreground and background are those of the target.
    """

    true_fg: Tensor
    true_bg: Tensor
    success_fg: Tensor
    success_bg: Tensor
    failure_fg: Tensor
    failure_bg: Tensor

    def fractions(self, valid: Tensor) -> dict[str, Tensor]:
        """Share of each mask's valid pixels that lie in each region: region name -> (N,) float32 in [0, 1].

        Args:
            valid: (N, s, s) or (1, s, s) bool, the pixels that the regions were drawn from.
        """
        num_valid = valid.sum(dim=(1, 2))
        return {name: region.sum(dim=(1, 2)) / num_valid for name, region in self._asdict().items()}


def refinement_regions(
    target_masks: Tensor,
    noisy_masks: Tensor,
    refined_masks: Tensor,
    valid: Tensor,
    *,
    count_new_errors: bool = False,
) -> RefinementRegions:
    """Sort pixels by target, noisy and refined mask (paper 3.4).

    The paper's formulas leave out the errors that the refiner itself makes, where the noisy mask was
    right and the refined one is not, although its B.6 calls the regions exhaustive.

    Args:
        target_masks: (N, s, s) bool.
        noisy_masks: (N, s, s) bool, what the refiner was given.
        refined_masks: (N, s, s) bool, what it made of them.
        valid: (N, s, s) or (1, s, s) bool, pixels that are image and not padding.
        count_new_errors: count the refiner's own errors as failures too (ours); the regions are then exhaustive.
    """
    foreground, background = target_masks & valid, ~target_masks & valid
    failure_fg, failure_bg = foreground & ~refined_masks, background & refined_masks
    if not count_new_errors:
        failure_fg, failure_bg = failure_fg & ~noisy_masks, failure_bg & noisy_masks
    return RefinementRegions(
        true_fg=foreground & noisy_masks & refined_masks,
        true_bg=background & ~noisy_masks & ~refined_masks,
        success_fg=foreground & ~noisy_masks & refined_masks,
        success_bg=background & noisy_masks & ~refined_masks,
        failure_fg=failure_fg,
        failure_bg=failure_bg,
    )
