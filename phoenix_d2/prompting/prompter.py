"""From coarse masks to everything that the decoder is asked with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from phoenix_d2.ops.masks import masks_to_boxes
from phoenix_d2.prompting.boxes import box_corners, grow_boxes
from phoenix_d2.prompting.cues import UserCues
from phoenix_d2.prompting.depths import DepthMaps, chamfer_depths, euclidean_depths
from phoenix_d2.prompting.mask_prompt import binary_prompt, gaussian_prompt, logit_prompt
from phoenix_d2.prompting.points import sample_points, to_sam_coords
from phoenix_d2.structures import PointLabel, Prompts

MaskCoding: TypeAlias = Literal["logit", "gaussian", "binary"]
Compat: TypeAlias = Literal["samrefiner"]

PointSet: TypeAlias = tuple[Tensor, Tensor]
"""(N, K, 2) coordinates as segment-anything takes them, and their (N, K) labels."""

_NUM_DERIVED_POINTS = 2
_AMPLITUDE = 30.0
# model-input pixels, where SAMRefiner has pixels of the image
_MAX_GROWTH_STEP = 10.0
# SAMRefiner trusts the mask of a box that grew much less than it does by default
_GROWN_AMPLITUDE = 1.0


@dataclass(frozen=True, kw_only=True)
class CoarseMaskPrompter:
    """Derives points, box and mask prompt from coarse masks, after SAMRefiner's strategy (paper 3.2).

    The points of a mask are, in this order and each group only if it is on:

    - its deepest pixel, and the background pixel in its box that is farthest from it (padding when
      that one is not deeper than a pixel);
    - the top left and the bottom right corner of its tight box; without a box, one padding point
      follows the points, as in segment-anything.

    With `compat="samrefiner"` what its code does is done instead where it differs: chamfer distances,
    the border of the image is no background, the negative point is always given (in the top left
    corner of the frame, if need be) and never in the last row or column of the box, the mask
    prompt is `gaussian` if there is one, with amplitude 1 for a box that grew. It measures in the
    frame of the image, this class in the low-resolution one: that remains a difference, and
    half a pixel is placed as everywhere here.

    Attributes:
        points: give the two points.
        box: give the box.
        mask: coding of the mask prompt (`prompting.mask_prompt`); None for none.
        mask_scale: logit of a certain pixel in the `logit` coding.
        box_growth: SAMRefiner's margin, the share of similar pixels above which a side of the box
            moves outwards (`prompting.boxes.grow_boxes`); 0 keeps boxes tight.
        compat: whose choices to reproduce.

    Raises:
        ValueError: a name is unknown, a value out of range, or nothing is turned on.
    """

    points: bool = True
    box: bool = True
    mask: MaskCoding | None = "logit"
    mask_scale: float = 10.0
    box_growth: float = 0.0
    compat: Compat | None = None

    def __post_init__(self) -> None:
        if self.mask not in (None, *get_args(MaskCoding)):
            raise ValueError(f"Unknown mask prompt {self.mask!r}: choose one of {get_args(MaskCoding)} or None.")
        if self.compat not in (None, *get_args(Compat)):
            raise ValueError(f"Unknown compat {self.compat!r}: choose one of {get_args(Compat)} or None.")
        if not (self.points or self.box or self.mask):
            raise ValueError("A prompter without points, box and mask prompt asks for nothing: turn one on.")
        if not self.mask_scale > 0:
            raise ValueError(f"mask_scale {self.mask_scale} is the logit of a certain pixel and must be above 0.")
        if not 0 <= self.box_growth < 1:
            raise ValueError(f"box_growth {self.box_growth} is a share of pixels and must be in [0, 1).")
        if self.box_growth > 0 and not self.box:
            raise ValueError("box_growth has no box to grow: set box=True or box_growth=0.")

    @torch.no_grad()
    def __call__(
        self,
        soft_masks: Tensor,
        *,
        stride: int,
        image_embeddings: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Prompts:
        """Prompts of N masks; those of a mask do not depend on what else is in the batch.

        A mask is where coverage reaches a half. Where it never does (a thread thinner than half a
        low-resolution pixel), the mask is where it reaches half of its peak. An empty mask has no
        points but padding: nothing says which object is meant, and callers should not ask.

        Args:
            soft_masks: (N, s, s) float in [0, 1], coverage in the low-resolution frame.
            stride: model-input pixels a low-resolution pixel; 4 in SAM.
            image_embeddings: (N, C, h, w) or (1, C, h, w) float; needed if boxes grow.
            valid: (N, s, s) or (1, s, s) bool, pixels that hold image, which bound the growth of boxes and
                tell `compat` where the image ends; all when None.

        Raises:
            ValueError: boxes grow and there are no image embeddings.
        """
        masks = _binarise(soft_masks)
        host_masks = masks.cpu()
        host_boxes = masks_to_boxes(host_masks)
        depths = self._depths(host_masks, host_boxes, valid)
        tight_boxes = host_boxes.to(masks.device, torch.float32)
        boxes = self._grow(tight_boxes, masks, stride, image_embeddings, valid)

        points = self._points(depths, stride, masks.device) if self.points else _padding(boxes, 0)
        corners = _box_points(boxes * stride) if self.box else _padding(boxes, 0)
        grown = (boxes != tight_boxes).any(dim=1)
        prompts = Prompts(*_join(points, corners), self._mask_prompt(soft_masks, masks, depths, grown))
        return prompts.without_points(tight_boxes[:, 2] == 0)

    def with_user_prompts(self, prompts: Prompts, cues: UserCues) -> Prompts:
        """Replace derived prompts by those that a user gives (visual cues, paper A.2).

        Points take the place of the points, a box that of the box; what is not given, to all masks or to one, stays as
        derived.

        Args:
            prompts: what this prompter derived for N masks.
            cues: for the same masks, in continuous model-input coordinates.
        """
        split = _NUM_DERIVED_POINTS if self.points else 0
        old_coords, old_labels = prompts.point_coords, prompts.point_labels
        point_set = old_coords[:, :split], old_labels[:, :split]
        corner_set = old_coords[:, split:], old_labels[:, split:]
        if cues.points is not None and cues.point_labels is not None:
            labels = cues.point_labels.to(old_labels)
            given = (labels != PointLabel.PADDING).any(dim=1)
            point_set = _choose(given, (to_sam_coords(cues.points), labels), point_set)
        if cues.boxes is not None:
            corner_set = _box_points(cues.boxes)
        return Prompts(*_join(point_set, corner_set), prompts.mask_logits)

    def _depths(self, masks: Tensor, boxes: Tensor, valid: Tensor | None) -> DepthMaps:
        if self.compat == "samrefiner":
            return chamfer_depths(masks, boxes, valid=None if valid is None else valid.cpu())
        return euclidean_depths(masks, boxes)

    def _grow(
        self, boxes: Tensor, masks: Tensor, stride: int, image_embeddings: Tensor | None, valid: Tensor | None
    ) -> Tensor:
        if self.box_growth == 0:
            return boxes
        if image_embeddings is None:
            raise ValueError(f"box_growth {self.box_growth} needs image_embeddings: pass them, or set box_growth=0.")
        return grow_boxes(
            boxes,
            masks,
            image_embeddings=image_embeddings,
            margin=self.box_growth,
            max_step=_MAX_GROWTH_STEP / stride,
            valid=valid,
        )

    def _points(self, depths: DepthMaps, stride: int, device: torch.device) -> PointSet:
        if self.compat == "samrefiner":
            coords, labels = sample_points(depths, min_negative_depth=-math.inf)
        else:
            coords, labels = sample_points(depths)
        return to_sam_coords(coords * stride).to(device), labels.to(device)

    def _mask_prompt(self, soft_masks: Tensor, masks: Tensor, depths: DepthMaps, grown: Tensor) -> Tensor | None:
        if self.mask is None:
            return None
        if self.compat == "samrefiner":
            amplitude = torch.where(grown, _GROWN_AMPLITUDE, _AMPLITUDE)
            return gaussian_prompt(masks, depths.foreground.to(masks.device), amplitude=amplitude)
        if self.mask == "gaussian":
            return gaussian_prompt(masks, depths.foreground.to(masks.device), amplitude=_AMPLITUDE)
        if self.mask == "binary":
            return binary_prompt(masks)
        return logit_prompt(soft_masks, scale=self.mask_scale)


def _binarise(soft_masks: Tensor) -> Tensor:
    """(N, s, s) bool: where coverage reaches a half, or half of its peak if that is less."""
    peak = soft_masks.amax(dim=(1, 2), keepdim=True)
    threshold = torch.where(peak >= 0.5, 0.5, peak / 2)
    return soft_masks >= threshold.masked_fill(peak == 0, math.inf)


def _box_points(boxes: Tensor) -> PointSet:
    """The corners of (N, 4) continuous model-input boxes."""
    labels = torch.tensor([PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT], device=boxes.device)
    return box_corners(boxes), labels.expand(len(boxes), 2)


def _padding(like: Tensor, count: int) -> PointSet:
    """`count` padding points for each of the N rows of `like`."""
    labels = torch.full((len(like), count), int(PointLabel.PADDING), device=like.device)
    return torch.zeros(len(like), count, 2, device=like.device), labels


def _choose(chosen: Tensor, points: PointSet, others: PointSet) -> PointSet:
    """The points of the masks in `chosen` ((N,) bool), for the rest the others; the shorter set is padded."""
    if chosen.all():
        return points
    count = max(points[1].shape[1], others[1].shape[1])
    own, rest = (_append(each, _padding(each[1], count - each[1].shape[1])) for each in (points, others))
    return torch.where(chosen[:, None, None], own[0], rest[0]), torch.where(chosen[:, None], own[1], rest[1])


def _append(points: PointSet, others: PointSet) -> PointSet:
    return torch.cat([points[0], others[0]], dim=1), torch.cat([points[1], others[1]], dim=1)


def _join(points: PointSet, corners: PointSet) -> PointSet:
    """Points, then box corners; points without a box get the padding point that segment-anything gives them."""
    if points[1].shape[1] and not corners[1].shape[1]:
        corners = _padding(points[1], 1)
    return _append(points, corners)
