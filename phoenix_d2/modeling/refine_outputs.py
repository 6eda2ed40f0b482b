"""Refined masks in a detector's outputs: "instances", "sem_seg" and "panoptic_seg", each in its own format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor

from phoenix_d2.evidence import SourceMemory
from phoenix_d2.ops.masks import masks_to_boxes
from phoenix_d2.refiner import MaskRefiner
from phoenix_d2.semantic import merge_labels, split_labels
from phoenix_d2.structures import RefinementResult, RefinementStatus

OUTPUTS = ("instances", "sem_seg", "panoptic_seg")
"""Fields of a model's output that can be refined."""


def refine_output(
    refiner: MaskRefiner,
    image: Tensor,
    output: Mapping[str, Any],
    *,
    image_format: str = "RGB",
    outputs: Collection[str] = OUTPUTS,
    update_boxes: bool = False,
    rescore: bool = False,
    memory: SourceMemory | None = None,
) -> dict[str, Any]:
    """Refine all that a Detectron2 model says of one image, on one encoding of it.

    - "instances": every mask of `pred_masks` by itself, so that instances may overlap as before; see
      `refine_instances` for the other fields.
    - "sem_seg", (C, H, W) scores: the label map of the highest scores (see `phoenix_d2.semantic`). Where a label
      changes, the old and the new class exchange their scores.
    - "panoptic_seg", an (H, W) map of segment ids, and a list of what the segments are or None: the map, a thing as
      one mask, stuff part by part. Void (0, or -1 without a list) stays void. A segment that loses its last pixel
      leaves the list; "area" follows the map where it is given.

    Args:
        refiner: in evaluation mode, on any device.
        image: (3, h, w) in 0 to 255, uint8 or float, as the model was given it: see `image_in_output_frame`.
        output: of the model, its fields of one size (H, W).
        image_format: order of the image's channels, "RGB" or "BGR".
        outputs: the fields to refine where the model has them, of `OUTPUTS`.
        update_boxes: see `refine_instances`.
        rescore: see `refine_instances`.
        memory: of the masks of this model; it comes to know these too.

    Returns:
        The same keys in the same order, each value of its former type and on its former device. Nothing in `output` is
        changed.

    Raises:
        ValueError: the fields differ in size.
    """
    fields = {name: _FIELDS[name](output[name]) for name in outputs if name in output and _has_masks(output[name])}
    if not fields:
        return dict(output)
    sizes = {name: tuple(field.masks.shape[1:]) for name, field in fields.items()}
    size, *others = set(sizes.values())
    if others:
        raise ValueError(
            f"Outputs of one image have one size (height, width), got {sizes}: resize them, or leave some out "
            "(outputs=..., MODEL.REFINER.OUTPUTS)."
        )
    image = image_in_output_frame(image.to(refiner.device), size, image_format)
    masks = torch.cat([field.masks.to(refiner.device) for field in fields.values()])
    # label maps are merged by them
    result = _refine(refiner, image, masks, memory, keep_logits=fields.keys() != {"instances"})
    refined, start = {}, 0
    for name, field in fields.items():
        end = start + len(field.masks)
        refined[name] = field.refined(refiner, result[start:end], update_boxes=update_boxes, rescore=rescore)
        start = end
    return {**output, **refined}


def refine_instances(
    refiner: MaskRefiner,
    image: Tensor,
    instances: Instances,
    *,
    update_boxes: bool = False,
    rescore: bool = False,
    memory: SourceMemory | None = None,
) -> Instances:
    """Refine the masks of one image's detections.

    Args:
        refiner: in evaluation mode, on any device.
        image: (3, H, W) RGB in 0 to 255, uint8 or float, in the frame of the masks.
        instances: with `pred_masks` (N, H, W), bool or 0 and 1 of any other type; instances without
            are returned as they are.
        update_boxes: let `pred_boxes` follow the masks; the box of an empty mask stays.
        rescore: multiply `scores` by the predicted IoU of the refined masks, or of the coarse ones that the
            gate kept; a score stays where the decoder predicts none.
        memory: of the masks of this model; it comes to know these too.

    Returns:
        New instances with the same fields in the same order, each of its former type and on its former device.

    Raises:
        ValueError: image and masks differ in size.
    """
    if not _has_masks(instances):
        return instances
    field = _InstancesField(instances)
    result = _refine(refiner, image, field.masks, memory, keep_logits=False)
    return field.refined(refiner, result, update_boxes=update_boxes, rescore=rescore)


def image_in_output_frame(image: Tensor, output_size: tuple[int, int], image_format: str) -> Tensor:
    """Bring a detector's input image to the frame of its outputs, for `refine_instances`.

    The test augmentation has already resized the image, and resizing it back does not restore it: detail
    finer than the detector's input stays lost, and an image that was enlarged comes back slightly blurred.

    Args:
        image: (3, h, w) in 0 to 255, as the detector was given it.
        output_size: (H, W) of its outputs.
        image_format: order of its channels, "RGB" or "BGR".

    Returns:
        (3, H, W) RGB: bytes of the size already, as they are, so that the refiner sees what a file would show it; else
        float, resized bilinearly with antialiasing.
    """
    rgb = image.flip(0) if image_format == "BGR" else image
    if rgb.dtype == torch.uint8 and rgb.shape[-2:] == output_size:
        return rgb
    resized = F.interpolate(rgb[None].float(), output_size, mode="bilinear", antialias=True, align_corners=False)
    return resized[0]


def _refine(
    refiner: MaskRefiner, image: Tensor, masks: Tensor, memory: SourceMemory | None, *, keep_logits: bool
) -> RefinementResult:
    memory = memory or SourceMemory()
    # a detector that is called under autocast would impose its precision on the refiner
    with torch.autocast(refiner.device.type, enabled=False):
        result = refiner.refine(image, masks, source=memory.source, keep_logits=keep_logits)
    memory.add(result.evidence)
    return result


class _Field(ABC):
    """A field of a model's output.

    Attributes:
        masks: (N, H, W) bool, to be refined.
    """

    masks: Tensor

    @abstractmethod
    def refined(self, refiner: MaskRefiner, result: RefinementResult, *, update_boxes: bool, rescore: bool) -> Any:
        """The field with what `refiner` made of its masks."""


class _InstancesField(_Field):
    def __init__(self, instances: Instances) -> None:
        self.instances = instances
        self.masks = instances.pred_masks > 0.5

    def refined(
        self, refiner: MaskRefiner, result: RefinementResult, *, update_boxes: bool, rescore: bool
    ) -> Instances:
        fields = self.instances.get_fields().copy()
        fields["pred_masks"] = result.masks.to(fields["pred_masks"])
        if update_boxes and "pred_boxes" in fields:
            fields["pred_boxes"] = _boxes_of(result.masks, otherwise=fields["pred_boxes"])
        if rescore and "scores" in fields:
            fields["scores"] = fields["scores"] * _mask_quality(result).to(fields["scores"])
        return Instances(self.instances.image_size, **fields)


class _SemSegField(_Field):
    def __init__(self, scores: Tensor) -> None:
        self.scores = scores
        self.labels = scores.argmax(dim=0)
        self.parts = split_labels(self.labels)
        self.masks = self.parts.masks

    def refined(self, refiner: MaskRefiner, result: RefinementResult, **_: bool) -> Tensor:
        labels = merge_labels(self.labels, self.parts, result, refiner.plan(self.masks)[1])[None]
        highest, replaced = self.scores.gather(0, self.labels[None]), self.scores.gather(0, labels)
        # the least that puts the new label above a third one of the same score
        rise = (highest.abs() * torch.finfo(highest.dtype).eps).clamp(min=torch.finfo(highest.dtype).tiny)
        winning = torch.where(labels == self.labels, highest, highest + rise)
        return self.scores.scatter(0, self.labels[None], replaced).scatter(0, labels, winning)


class _PanopticField(_Field):
    def __init__(self, panoptic: tuple[Tensor, list[dict[str, Any]] | None]) -> None:
        self.ids, self.segments = panoptic
        self.void = -1 if self.segments is None else 0
        things = [segment["id"] for segment in self.segments or () if segment.get("isthing")]
        self.parts = split_labels(self.ids, ignored=[self.void], whole=things)
        self.masks = self.parts.masks

    def refined(
        self, refiner: MaskRefiner, result: RefinementResult, **_: bool
    ) -> tuple[Tensor, list[dict[str, Any]] | None]:
        ids = merge_labels(self.ids, self.parts, result, refiner.plan(self.masks)[1], void=self.void)
        if self.segments is None:
            return ids, None
        areas = dict(zip(*(values.tolist() for values in ids.unique(return_counts=True)), strict=True))
        return ids, [
            segment | ({"area": areas[segment["id"]]} if "area" in segment else {})
            for segment in self.segments
            if segment["id"] in areas
        ]


_FIELDS: Mapping[str, type[Any]] = dict(zip(OUTPUTS, (_InstancesField, _SemSegField, _PanopticField), strict=True))


def _has_masks(field: Any) -> bool:
    return not isinstance(field, Instances) or field.has("pred_masks")


def _boxes_of(masks: Tensor, *, otherwise: Boxes) -> Boxes:
    boxes = masks_to_boxes(masks).to(otherwise.tensor)
    empty = boxes[:, 2:3] == 0
    return Boxes(torch.where(empty, otherwise.tensor, boxes))


def _mask_quality(result: RefinementResult) -> Tensor:
    """(N,) predicted IoU in [0, 1], which the decoder may overstep; 1 where there is no prediction."""
    refined, rejected = (
        result.status == status for status in (RefinementStatus.REFINED, RefinementStatus.KEPT_REJECTED)
    )
    # without a factor of their own, the masks that the gate kept would overtake those that became better
    quality = torch.where(rejected, result.coarse_iou_predictions, torch.nan)
    quality = torch.where(refined, result.iou_predictions, quality)
    return quality.clamp(0, 1).nan_to_num(nan=1.0)
