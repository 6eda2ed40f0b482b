"""The cascade: pass after pass, the mask that came back is the next one's prompt (paper B.3).

It knows no model: what answers a mask is a function. All of it lies in the low-resolution frame. Shape letters as in
`structures`; T passes, A masks that still take part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.options import RefineOptions
from phoenix_d2.structures import MaskPrediction

Predict: TypeAlias = Callable[[Tensor, Tensor], MaskPrediction]
"""((A, s, s) float masks, (A,) long, which of the N masks they are) -> all candidates that the decoder has for them."""

Correct: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""((A, s, s) float logits that a pass chose, (A,) long, which of the N masks they are) -> those that hold instead."""


@dataclass(frozen=True)
class CascadeResult:
    """What T passes made of N masks.

    Attributes:
        logits: (N, s, s) float, of the last pass.
        ious: (N, T) float, predicted IoU of each pass.
        changes: (N, T) float, IoU of each pass' mask with the one before.
        coarse_iou: (N,) float, predicted IoU of the coarse masks; NaN from a decoder that makes no such prediction.
        unanimity: (N,) float, of the last pass' candidates, see `evidence.EVIDENCE`.
    """

    logits: Tensor
    ious: Tensor
    changes: Tensor
    coarse_iou: Tensor
    unanimity: Tensor

    @classmethod
    def of_no_pass(cls, num_masks: int, num_iters: int, low_res_size: int, device: torch.device) -> CascadeResult:
        """What there is to say of masks that nothing was made of."""
        return cls(
            logits=torch.zeros(num_masks, low_res_size, low_res_size, device=device),
            ious=torch.zeros(num_masks, num_iters, device=device),
            changes=torch.ones(num_masks, num_iters, device=device),
            coarse_iou=torch.full((num_masks,), torch.nan, device=device),
            unanimity=torch.ones(num_masks, device=device),
        )


def run_cascade(
    predict: Predict, coarse_masks: Tensor, valid: Tensor, options: RefineOptions, correct: Correct | None = None
) -> CascadeResult:
    """Refine masks pass by pass.

    A mask that vanishes stays what it was in the pass before; the logits of one that the first pass erased are 0.
    Such masks, and those that no longer change, leave: another pass would give the same answer to the same prompts.

    Args:
        predict: answers the masks that still take part.
        coarse_masks: (N, s, s) float in [0, 1], share of each pixel that the mask covers.
        valid: (N, s, s) bool, pixels that are no padding.
        options: number of passes, choice of the candidate and when to stop.
        correct: what becomes of the logits that a pass chose; None to take them as they are.
    """
    n, side, _ = coarse_masks.shape
    result = CascadeResult.of_no_pass(n, options.num_iters, side, coarse_masks.device)
    masks, going = coarse_masks.clone(), torch.arange(n, device=coarse_masks.device)
    for t in range(options.num_iters):
        given, inside = masks[going], valid[going]
        candidates = predict(given, going).float()
        if t == 0 and candidates.prompt_iou_predictions is not None:
            result.coarse_iou[:] = candidates.prompt_iou_predictions
        chosen = candidates.mean() if options.candidate == "mean" else candidates.multimask().best()
        logits = chosen.low_res_logits[:, 0]
        if correct:
            logits = correct(logits, going)
        new_masks = (logits > 0) & inside
        alive = new_masks.flatten(1).any(1)
        change = torch.where(alive, mask_iou(new_masks, given >= 0.5), 1.0)
        # what a pass says holds for all later ones, unless they say otherwise
        result.changes[going, t:] = change[:, None]
        result.ious[going, t:] = torch.where(alive, chosen.iou_predictions[:, 0], result.ious[going, t])[:, None]
        result.unanimity[going] = torch.where(alive, _unanimity(candidates, inside), result.unanimity[going])
        result.logits[going] = torch.where(alive[:, None, None], logits, result.logits[going])
        masks[going] = torch.where(alive[:, None, None], new_masks.to(given.dtype), given)
        # the first pass may be given shares of pixels, the second is given whole ones: an equal mask is another prompt
        may_stop = t > 0 or options.stop_overlap < 1
        going = going[alive & (change < options.stop_overlap if may_stop else True)]
        if not len(going):
            break
    return result


def _unanimity(candidates: MaskPrediction, valid: Tensor) -> Tensor:
    """(A,) what all candidates share over what any of them covers; 1 where none covers anything."""
    # the extremes of the logits: many times faster than to reduce masks
    return mask_iou(candidates.low_res_logits.amin(1) > 0, candidates.low_res_logits.amax(1) > 0, valid)
