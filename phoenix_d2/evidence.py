"""What can be seen of a refined mask and of where it comes from, by which a gate decides. Not in the paper; ours.

Shape letters as in `structures`; F kinds of evidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from phoenix_d2.ops.masks import mask_iou

EVIDENCE = (
    "refined_iou",
    "coarse_iou",
    "overlap",
    "agreement",
    "expected_refined_iou",
    "expected_coarse_iou",
    "change_certainty",
    "unanimity",
    "log_area",
    "log_edge_ratio",
)
"""Kinds of evidence on a pair of masks, in the order of columns:

- refined_iou, coarse_iou: the decoder's estimates of the IoU of both masks, of the coarse one as the first pass was
  asked with it; NaN where it makes none of that.
- overlap: IoU of the two masks.
- agreement: IoU of the refined mask with that of the pass before; NaN after a single pass.
- expected_refined_iou, expected_coarse_iou: IoU of both masks with the probabilities that the logits stand for.
- change_certainty: mean of |2 p - 1| over the pixels in which the masks differ, 1 where they do not.
- unanimity: what all the decoder's candidates share over what any of them covers.
- log_area: of the refined mask, in low-resolution pixels.
- log_edge_ratio: strength of the image's edges under the refined mask's outline to that under the coarse one's.
"""

# about the edge strength of camera noise
_EDGE_FLOOR = 0.05

ENOUGH_MASKS = 200
"""Masks of a source beyond which a gate hardly becomes more familiar with it (0.98, see `gate.PRIOR_MASKS`)."""


def edge_strength(images: Tensor, valid: Tensor) -> Tensor:
    """How strong the strongest edge within a pixel of each pixel is.

    Args:
        images: (N, 3, s, s) float, RGB of unit variance or so, padded with 0.
        valid: (N, s, s) bool, pixels that are no padding.

    Returns:
        (N, s, s) float, length of the gradient of the channels' mean; 0 where padding begins, which is no edge.
    """
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    x = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    y = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    # outlines may lie a pixel beside their edge
    edges = F.max_pool2d(torch.hypot(x, y), 3, stride=1, padding=1)[:, 0]
    return edges * (F.max_pool2d((~valid).float(), 5, stride=1, padding=2) == 0)


def measure_evidence(
    coarse_masks: Tensor,
    logits: Tensor,
    edges: Tensor,
    *,
    valid: Tensor,
    iou_predictions: Tensor,
    coarse_iou_predictions: Tensor,
    change_trace: Tensor,
    unanimity: Tensor,
) -> Tensor:
    """The evidence on N masks, from what their passes left in the low-resolution frame.

    Args:
        coarse_masks: (N, s, s) bool.
        logits: (N, s, s) float of the last pass.
        edges: (N, s, s) or (1, s, s) float, see `edge_strength`.
        valid: (N, s, s) or (1, s, s) bool, pixels that are no padding.
        iou_predictions: (N,) float, of the refined masks.
        coarse_iou_predictions: (N,) float, NaN where unknown.
        change_trace: (N, T) float, IoU of each pass' mask with the one before.
        unanimity: (N,) float, see `EVIDENCE`.

    Returns:
        (N, F) float32, columns as in `EVIDENCE`; finite but for NaN where there is none of a kind.
    """
    refined_masks = (logits > 0) & valid
    probabilities = logits.float().sigmoid() * valid
    changed = refined_masks ^ coarse_masks
    certainty = ((2 * probabilities - 1).abs() * changed).flatten(1).sum(1)
    num_changed = changed.flatten(1).sum(1)
    agreement = change_trace[:, -1] if change_trace.shape[1] > 1 else torch.full_like(iou_predictions, torch.nan)
    columns = {
        "refined_iou": iou_predictions,
        "coarse_iou": coarse_iou_predictions,
        "overlap": mask_iou(refined_masks, coarse_masks),
        "agreement": agreement,
        "expected_refined_iou": _soft_iou(probabilities, refined_masks),
        "expected_coarse_iou": _soft_iou(probabilities, coarse_masks),
        "change_certainty": torch.where(num_changed > 0, certainty / num_changed.clamp(min=1), 1.0),
        "unanimity": unanimity,
        "log_area": refined_masks.flatten(1).sum(1).clamp(min=1).log(),
        "log_edge_ratio": _edges_under(refined_masks, edges).log() - _edges_under(coarse_masks, edges).log(),
    }
    return torch.stack([columns[name].float() for name in EVIDENCE], dim=1)


@dataclass(frozen=True)
class MaskSource:
    """Where masks come from, a detector or an annotator, as far as some of its masks have shown.

        source = MaskSource()
        for image, masks in data:
            result = refiner.refine(image, masks, source=source)
            source += MaskSource.of(result.evidence)

    Attributes:
        num_masks: that are known.
        mean_evidence: (F,) of these, columns as in `EVIDENCE`; NaN where there is none of a kind.
    """

    num_masks: int = 0
    mean_evidence: tuple[float, ...] = (math.nan,) * len(EVIDENCE)

    @classmethod
    def of(cls, evidence: Tensor | NDArray[np.floating[Any]]) -> MaskSource:
        """The source of N masks by their (N, F) evidence; rows without any, of masks not refined, do not count."""
        evidence = torch.as_tensor(evidence).cpu()
        known = evidence[~evidence.isnan().all(1)].double()
        return cls(len(known), tuple(known.nanmean(0).tolist())) if len(known) else cls()

    def __add__(self, other: MaskSource) -> MaskSource:
        """The source that the masks of both come from."""
        pairs = zip(self.mean_evidence, other.mean_evidence, strict=True)
        num_masks = self.num_masks + other.num_masks
        return MaskSource(num_masks, tuple(_mean_of_known((a, self.num_masks), (b, other.num_masks)) for a, b in pairs))


class SourceMemory:
    """Comes to know a source from the masks that are refined one image after the other.

    Once `ENOUGH_MASKS` are known it stays as it is, so that all images after that are decided alike.

    Attributes:
        source: what is known so far.
    """

    def __init__(self, source: MaskSource | None = None) -> None:
        self.source = source or MaskSource()

    @property
    def is_full(self) -> bool:
        """Whether enough masks are known."""
        return self.source.num_masks >= ENOUGH_MASKS

    def add(self, evidence: Tensor | NDArray[np.floating[Any]]) -> None:
        """Remember the masks of (N, F) evidence."""
        if not self.is_full:
            self.source += MaskSource.of(evidence)


def _mean_of_known(*parts: tuple[float, int]) -> float:
    """Mean of (mean, number of masks) that are known; NaN of none."""
    known = [(mean, number) for mean, number in parts if not math.isnan(mean)]
    return sum(mean * number for mean, number in known) / sum(number for _, number in known) if known else math.nan


def _soft_iou(probabilities: Tensor, masks: Tensor) -> Tensor:
    """(N, s, s) probabilities and bool masks -> (N,) IoU by shares of pixels; 1 where both are empty."""
    intersection = (probabilities * masks).flatten(1).sum(1)
    union = probabilities.flatten(1).sum(1) + masks.flatten(1).sum(1) - intersection
    return torch.where(union > 0, intersection / union.clamp(min=1e-6), 1.0)


def _edges_under(masks: Tensor, edges: Tensor) -> Tensor:
    """(N,) mean edge strength under the outlines of masks, with a floor so that flat images favour neither of two."""
    padded = F.pad(masks, (1, 1, 1, 1))
    inner = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    outlines = masks & ~inner
    return (outlines * edges).flatten(1).sum(1) / outlines.flatten(1).sum(1).clamp(min=1) + _EDGE_FLOOR
