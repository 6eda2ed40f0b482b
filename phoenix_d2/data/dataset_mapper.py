"""From dataset dicts to what `Phoenix` reads."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.structures import BitMasks, Instances

from phoenix_d2.data.images import read_image
from phoenix_d2.data.mask_json import annotation_area, decode_segmentation
from phoenix_d2.ops.frames import Frame
from phoenix_d2.sam.encoders import get_encoder


class RefinementDatasetMapper:
    """Training samples: one image (or a window around one object of it) and masks drawn from it, if it has any.

    The image is read once, cut, flipped and resized to the model input here, in the worker; masks
    of annotations that were not drawn are never decoded. Boxes are XYWH, as in COCO's files.

    Args:
        input_size: side of the model input in pixels; the long side of the image becomes this.
        masks_per_image: most annotations drawn, uniformly, from those that are not crowd and have
            more than `min_area` pixels (SegRefiner's draw, with one an image).
        object_crop_prob: probability of a window around a drawn object; of an image without annotations, around any
            box of it.
        object_crop_context: range of the window's side, in units of the long side of the object's
            box; uniform in the logarithm.
        flip_prob: of a horizontal flip.
        color_jitter: brightness, contrast and saturation vary by up to this share, hue by a tenth of it.

    Raises:
        ValueError: `masks_per_image` is below 1, or `object_crop_context` is no range of positive numbers.
    """

    @configurable
    def __init__(
        self,
        *,
        input_size: int,
        masks_per_image: int = 1,
        min_area: float = 512,
        object_crop_prob: float = 0.0,
        object_crop_context: tuple[float, float] = (1.3, 4.0),
        flip_prob: float = 0.5,
        color_jitter: float = 0.4,
    ) -> None:
        if masks_per_image < 1:
            raise ValueError(f"masks_per_image is {masks_per_image}: expected at least 1.")
        if not 0 < object_crop_context[0] <= object_crop_context[1]:
            raise ValueError(f"object_crop_context is {object_crop_context}: expected 0 < low <= high, as in (1.3, 4).")
        self.input_size = input_size
        self.masks_per_image = masks_per_image
        self.min_area = min_area
        self.object_crop_prob = object_crop_prob
        self.object_crop_context = object_crop_context
        self.flip_prob = flip_prob
        self.color_jitter = color_jitter

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read `MODEL.PHOENIX.DATA`."""
        encoder, data = cfg.MODEL.PHOENIX.ENCODER, cfg.MODEL.PHOENIX.DATA
        return {
            "input_size": get_encoder(encoder.NAME).check_input_size(encoder.INPUT_SIZE),
            "masks_per_image": data.MASKS_PER_IMAGE,
            "min_area": data.MIN_AREA,
            "object_crop_prob": data.OBJECT_CROP_PROB,
            "object_crop_context": tuple(data.OBJECT_CROP_CONTEXT),
            "flip_prob": data.FLIP_PROB,
            "color_jitter": data.COLOR_JITTER,
        }

    def is_trainable(self, annotation: dict[str, Any]) -> bool:
        """Whether an annotation may be drawn."""
        width, height = annotation["bbox"][2:]
        # the box bounds the area, and spares measuring most of the small ones
        if annotation.get("iscrowd", 0) or width * height <= self.min_area:
            return False
        return annotation_area(annotation) > self.min_area

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dict with "view_seed" and "sample_seed" (see `SampleStream`).

        The view is window, flip and colours. The sample is which of the masks in the window are drawn; a window's
        own object always is.

        Returns:
            The dict without annotations, with "image", (3, h, w) uint8 RGB at the size of the model
            input, unpadded, and "instances" in that frame with `gt_masks` (none where the dict has no
            annotations) and, where the dict's annotations have a "coarse_segmentation", `coarse_masks`
            (empty where there is none).
        """
        view, draw = (np.random.default_rng(dataset_dict[key]) for key in ("view_seed", "sample_seed"))
        image = read_image(dataset_dict["file_name"])
        utils.check_image_size(dataset_dict, image)
        size = image.shape[:2]
        whole = (0, 0, size[1], size[0])
        annotations = [
            a
            for a in dataset_dict.get("annotations", ())
            # some files have boxes that lie beside their image
            if self.is_trainable(a) and _visible_share(a["bbox"], whole) > 0
        ]
        first = view.integers(len(annotations)) if annotations else None
        order = list(draw.permutation(len(annotations)))
        window = whole
        if view.random() < self.object_crop_prob:
            box = _any_box(size, view) if first is None else annotations[first]["bbox"]
            window = self._object_window(size, box, view)
            order = sorted(order, key=lambda i: i != first)
        visible = [annotations[i] for i in order if _visible_share(annotations[i]["bbox"], window) > 0.5]
        drawn = visible[: self.masks_per_image]
        frame = Frame(size, window, self.input_size, self.input_size)
        flip = view.random() < self.flip_prob

        shrinks = frame.resized_size < frame.window_size
        pixels = _resize(image, frame, flip, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        instances = Instances(frame.resized_size)
        instances.gt_masks = self._masks([a["segmentation"] for a in drawn], size, frame, flip)
        if any("coarse_segmentation" in a for a in drawn):
            instances.coarse_masks = self._masks([a.get("coarse_segmentation") for a in drawn], size, frame, flip)
        # a polygon may enclose no pixel at this size
        instances = instances[instances.gt_masks.nonempty()]

        hidden = ("annotations", "view_seed", "sample_seed")
        sample = {key: value for key, value in dataset_dict.items() if key not in hidden}
        pixels = _jitter(pixels, self.color_jitter, view)
        sample["image"] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        sample["instances"] = instances
        return sample

    def _object_window(
        self, size: tuple[int, int], bbox: list[float], rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """A square that holds the object, at a random place, cut to the image."""
        x, y, width, height = bbox
        low, high = np.log(self.object_crop_context)
        side = np.exp(rng.uniform(low, high)) * max(width, height, 16)
        x0 = rng.uniform(x + width - side, x) if side > width else x
        y0 = rng.uniform(y + height - side, y) if side > height else y
        x1, y1 = min(round(x0 + side), size[1]), min(round(y0 + side), size[0])
        return max(round(x0), 0), max(round(y0), 0), x1, y1

    @staticmethod
    def _masks(segmentations: list[Any], size: tuple[int, int], frame: Frame, flip: bool) -> BitMasks:
        height, width = frame.resized_size
        masks = np.zeros((len(segmentations), height, width), dtype=bool)
        for mask, segmentation in zip(masks, segmentations, strict=True):
            if segmentation is not None:
                full = decode_segmentation(segmentation, *size).astype(np.float32)
                mask[:] = _resize(full, frame, flip, cv2.INTER_LINEAR) >= 0.5
        return BitMasks(torch.from_numpy(masks))


def _resize(pixels: np.ndarray, frame: Frame, flip: bool, interpolation: int) -> np.ndarray:
    x0, y0, x1, y1 = frame.window
    resized = cv2.resize(pixels[y0:y1, x0:x1], frame.resized_size[::-1], interpolation=interpolation)
    return resized[:, ::-1] if flip else resized


def _any_box(size: tuple[int, int], rng: np.random.Generator) -> list[float]:
    """A box (XYWH) anywhere in an image of (height, width) pixels, each side an eighth to half of the image's."""
    height, width = rng.uniform(1 / 8, 1 / 2, size=2) * size
    return [rng.uniform(0, size[1] - width), rng.uniform(0, size[0] - height), width, height]


def _visible_share(bbox: list[float], window: tuple[int, int, int, int]) -> float:
    """Share of a box (XYWH) that lies in a window (XYXY)."""
    x, y, width, height = bbox
    x0, y0, x1, y1 = window
    inside_x, inside_y = min(x + width, x1) - max(x, x0), min(y + height, y1) - max(y, y0)
    return max(inside_x, 0) * max(inside_y, 0) / max(width * height, 1e-6)


def _jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Vary brightness, contrast, saturation and hue of an (H, W, 3) uint8 RGB image."""
    if strength == 0:
        return image
    brightness, contrast, saturation = 1 + rng.uniform(-strength, strength, size=3)
    hue = rng.uniform(-strength, strength) / 10 * 180
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + round(hue)) % 180
    hsv[..., 1] = cv2.convertScaleAbs(hsv[..., 1], alpha=saturation)
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    values = brightness * (contrast * np.arange(256) + (1 - contrast) * image.mean())
    return cv2.LUT(image, np.clip(np.rint(values), 0, 255).astype(np.uint8))
