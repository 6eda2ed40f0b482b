"""Value objects that travel between the rooms of the package. Frozen; shapes are checked when built.

Shape letters used throughout: N masks, P points, C embedding channels, M mask candidates,
s the side of the low-resolution frame, H x W the image frame.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import SupportsIndex

import torch
from torch import Tensor


class PointLabel(IntEnum):
    """What a prompt point says; the numbering of segment-anything's exported (ONNX) model."""

    PADDING = -1
    BACKGROUND = 0
    FOREGROUND = 1
    BOX_TOP_LEFT = 2
    BOX_BOTTOM_RIGHT = 3


@dataclass(frozen=True)
class Prompts:
    """Visual and dense prompts of N masks.

    A box is two points with labels of their own, so that prompts of every kind share one tensor and
    can be padded or dropped mask by mask.

    Attributes:
        point_coords: (N, P, 2) float, (x, y) in pixels of the model input, as segment-anything
            takes them (it adds half a pixel itself).
        point_labels: (N, P) integer, values of `PointLabel`.
        mask_logits: (N, 1, s, s) float dense prompt in the low-resolution frame, or None.
    """

    point_coords: Tensor
    point_labels: Tensor
    mask_logits: Tensor | None = None

    def __post_init__(self) -> None:
        n = self.point_coords.shape[0]
        assert self.point_coords.ndim == 3 and self.point_coords.shape[2] == 2
        assert self.point_labels.shape == self.point_coords.shape[:2]
        assert self.mask_logits is None or self.mask_logits.shape[:2] == (n, 1)

    def __len__(self) -> int:
        return self.point_coords.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Prompts:
        masks = None if self.mask_logits is None else self.mask_logits[index]
        return Prompts(self.point_coords[index], self.point_labels[index], masks)

    def without_points(self, dropped: Tensor) -> Prompts:
        """The same prompts, all points and box corners of the masks in `dropped` ((N,) bool) padded away."""
        labels = self.point_labels.masked_fill(dropped[:, None], int(PointLabel.PADDING))
        return replace(self, point_labels=labels)


@dataclass(frozen=True)
class MaskPrediction:
    """What one decoder pass says of N masks.

    Attributes:
        low_res_logits: (N, M, s, s) float, positive inside the mask.
        iou_predictions: (N, M) float, the decoder's own estimate of each candidate's IoU.
        features: (N, C, s, s) float, the decoder's upscaled image embedding (paper B.1), from which
            all candidates of a mask are read.
        prompt_iou_predictions: (N,) float, the decoder's estimate of the IoU of the mask that it was
            prompted with, or None if it makes none.
    """

    low_res_logits: Tensor
    iou_predictions: Tensor
    features: Tensor
    prompt_iou_predictions: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.low_res_logits.ndim == 4 and self.features.ndim == 4
        assert self.iou_predictions.shape == self.low_res_logits.shape[:2]

    def float(self) -> MaskPrediction:
        """In float32."""
        prompt_iou = self.prompt_iou_predictions
        return MaskPrediction(
            self.low_res_logits.float(),
            self.iou_predictions.float(),
            self.features.float(),
            None if prompt_iou is None else prompt_iou.float(),
        )

    def select(self, candidate: Tensor) -> MaskPrediction:
        """Keep one candidate a mask; `candidate` is (N,) long."""
        rows = torch.arange(len(candidate), device=candidate.device)
        return replace(
            self,
            low_res_logits=self.low_res_logits[rows, candidate][:, None],
            iou_predictions=self.iou_predictions[rows, candidate][:, None],
        )

    def single(self) -> MaskPrediction:
        """The first candidate alone, segment-anything's answer to unambiguous prompts."""
        return self._candidates(slice(0, 1))

    def multimask(self) -> MaskPrediction:
        """All candidates but the first, segment-anything's `multimask_output=True`."""
        return self._candidates(slice(1, None))

    def best(self) -> MaskPrediction:
        """The candidate of the highest predicted IoU (paper B.3)."""
        return self.select(self.iou_predictions.argmax(dim=1))

    def mean(self) -> MaskPrediction:
        """The mean of all candidates, in logits and in predicted IoU."""
        return replace(
            self,
            low_res_logits=self.low_res_logits.mean(dim=1, keepdim=True),
            iou_predictions=self.iou_predictions.mean(dim=1, keepdim=True),
        )

    def _candidates(self, index: slice) -> MaskPrediction:
        return replace(
            self, low_res_logits=self.low_res_logits[:, index], iou_predictions=self.iou_predictions[:, index]
        )


class PerturbationOutcome(IntEnum):
    """Why the perturbation of a mask ended (Algorithm 1 and the ends that it leaves open)."""

    IN_BAND = 0
    STARTED_BELOW = 1
    EXHAUSTED_ABOVE = 2
    EXHAUSTED_BELOW = 3
    MORPHOLOGICAL = 4
    FROM_MODEL = 5
    SHAPELESS = 6
    DEGRADED = 7


@dataclass(frozen=True)
class PerturbationResult:
    """Noisy masks of N targets, and how each came about.

    Attributes:
        masks: (N, s, s) bool.
        iou: (N,) float, IoU of each noisy mask with its target.
        num_steps: (N,) long, embedding updates spent (0 for noise that is not adversarial).
        outcome: (N,) long, values of `PerturbationOutcome`.
    """

    masks: Tensor
    iou: Tensor
    num_steps: Tensor
    outcome: Tensor

    def __post_init__(self) -> None:
        n = self.masks.shape[0]
        assert self.masks.dtype == torch.bool and self.masks.ndim == 3
        assert self.iou.shape == self.num_steps.shape == self.outcome.shape == (n,)


class RefinementStatus(IntEnum):
    """What became of a coarse mask."""

    REFINED = 0
    KEPT_EMPTY = 1
    """The coarse mask has no pixel: nothing says which object is meant, so it stays as it was."""
    KEPT_SMALL = 2
    """Too small for the low-resolution frame, and zooming is off."""
    KEPT_VANISHED = 3
    """The decoder erased it: kept, since a refiner mends masks and does not judge detections."""
    KEPT_REJECTED = 4
    """The gate expects the refined mask to be no better: see `phoenix_d2.gate`."""


@dataclass(frozen=True)
class RefinementResult:
    """Refined masks of one image.

    Of a mask that was refined and then rejected, everything but `masks` tells of the refined one, so that the
    decision can be looked into; "kept as it was" below means the other reasons to keep a mask.

    Attributes:
        masks: (N, H, W) bool in the image frame.
        iou_predictions: (N,) float, predicted IoU of each refined mask, of rejected ones too; 0 for a mask
            that was kept for another reason.
        coarse_iou_predictions: (N,) float, the decoder's estimate of the own IoU of the coarse masks, as the first pass
            was asked with them; NaN for a mask that was not decoded, and where the decoder makes none.
        low_res_logits: (N, s, s) float, the last pass' logits in the frame it was decoded in (the
            window of a zoomed mask), of rejected masks too; 0 for a mask kept for another reason. (N, 0, 0) unless
            they were asked for, and from refiners that have none.
        status: (N,) long, values of `RefinementStatus`.
        iou_trace: (N, T) float, predicted IoU after each pass; a mask that needed fewer passes repeats its last one's.
        change_trace: (N, T) float, IoU of each pass' mask with the mask it was given; as above.
        evidence: (N, F) float, what the gate goes by, see `phoenix_d2.evidence.EVIDENCE`; NaN for a mask that was not
            decoded, and where there is none of a kind.
        predicted_gain: (N,) float, how much better the gate expects the refined mask to be; NaN for a mask kept
            as it was, and for all where no calibrated gate was asked.
    """

    masks: Tensor
    iou_predictions: Tensor
    coarse_iou_predictions: Tensor
    low_res_logits: Tensor
    status: Tensor
    iou_trace: Tensor
    change_trace: Tensor
    evidence: Tensor
    predicted_gain: Tensor

    def __post_init__(self) -> None:
        n = self.masks.shape[0]
        assert self.masks.ndim == self.low_res_logits.ndim == 3 and self.low_res_logits.shape[0] == n
        assert self.iou_predictions.shape == self.coarse_iou_predictions.shape == self.status.shape == (n,)
        assert self.iou_trace.shape == self.change_trace.shape and self.iou_trace.shape[0] == n
        assert self.evidence.ndim == 2 and self.predicted_gain.shape == self.evidence.shape[:1] == (n,)

    def __len__(self) -> int:
        return self.masks.shape[0]

    def __getitem__(self, index: Tensor | slice | SupportsIndex) -> RefinementResult:
        """The result of some of the masks; of a single one, as of Detectron2's `Instances`, by its number."""
        if not isinstance(index, slice) and getattr(index, "ndim", 0) == 0:
            index = operator.index(index)
            if not -len(self) <= index < len(self):
                raise IndexError(f"No mask {index} among {len(self)}.")
            index = slice(index, None, len(self))
        return RefinementResult(**{field.name: getattr(self, field.name)[index] for field in fields(self)})
