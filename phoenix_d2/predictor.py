"""The user's object: masks in, better masks out."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.sam.checkpoint import save_refiner
from phoenix_d2.sam.pretrained import load_pretrained
from phoenix_d2.structures import RefinementResult

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

    from phoenix_d2.modeling.hook import RefinerHook

Array: TypeAlias = NDArray[Any] | Tensor


class PhoenixRefiner:
    """Refines masks of RGB images; arrays or tensors in, the same kind out.

        refiner = PhoenixRefiner.from_pretrained("phoenix_tiny.safetensors")
        better = refiner.refine(image, masks).masks   # image (H, W, 3) uint8, masks (N, H, W) bool
        refiner.attach(detector)                      # any built Detectron2 model now refines its own masks

    Importing and refining need no Detectron2; `from_config` and `attach` do.

    Args:
        refiner: the network.
    """

    def __init__(self, refiner: MaskRefiner) -> None:
        self.refiner = refiner.eval()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        encoder_weights: str | Path | None = None,
        input_size: int | None = None,
        device: str | torch.device = "cpu",
    ) -> PhoenixRefiner:
        """Load a trained refiner.

        Args:
            name_or_path: weights that come with the package, by name, or a `.safetensors` or training checkpoint.
            encoder_weights: segment-anything's checkpoint, for a refiner whose encoder is one of its ViTs.
            input_size: side of the model input in pixels, where it is to be another than in training; a gate that was
                calibrated for one need not suit another.
            device: to refine on.

        Raises:
            FileNotFoundError: there is no such file, nor packaged weights of that name.
            ValueError: the file is damaged, was trained with other encoder weights, or its encoder does not take images
                of that side.
        """
        refiner = load_pretrained(name_or_path, encoder_weights=encoder_weights, input_size=input_size)
        return cls(refiner.to(device))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PhoenixRefiner:
        """Load `MODEL.REFINER.WEIGHTS`; keys of that node that are not None replace the options stored with them.

        Raises:
            FileNotFoundError: there is no such file, nor packaged weights of that name.
            ValueError: no weights are named, the file is damaged, or was trained with other encoder weights.
        """
        from phoenix_d2.modeling.build import build_trained_refiner

        return cls(build_trained_refiner(cfg))

    @property
    def options(self) -> RefineOptions:
        """Passes, chunk size and zoom, used where `refine` is not told otherwise."""
        return self.refiner.options

    def refine(
        self,
        image: Array,
        masks: Array,
        points: Array | None = None,
        boxes: Array | None = None,
        *,
        point_labels: Array | None = None,
        **options: Any,
    ) -> RefinementResult:
        """Refine the masks of one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            masks: (N, H, W) bool.
            points: (N, K, 2) float (x, y) in pixels, visual cues that replace the derived points (paper A.2).
            boxes: (N, 4) XYXY in pixels, exclusive maxima, that replace the derived boxes.
            point_labels: (N, K), 1 on the object, 0 off it, -1 for no point; all 1 when None.
            options: fields of `RefineOptions` to change for this call, such as `num_iters`.

        Returns:
            The result, its fields of the kind (array or tensor) that `masks` was.

        Raises:
            TypeError: there is no such option.
            ValueError: image, masks, points, labels, boxes or options are not as described.
        """
        result = self.refiner.refine(
            _check_image(_as_tensor(image)).permute(2, 0, 1),
            _as_tensor(masks),
            points=None if points is None else _as_tensor(points),
            point_labels=None if point_labels is None else _as_tensor(point_labels),
            boxes=None if boxes is None else _as_tensor(boxes),
            options=replace(self.options, **options),
        )
        return _to_numpy(result) if isinstance(masks, np.ndarray) else result

    def attach(
        self,
        model: nn.Module,
        *,
        update_boxes: bool = False,
        rescore: bool = False,
        image_format: Literal["RGB", "BGR"] | None = None,
    ) -> RefinerHook:
        """Make a built Detectron2 model pass its masks through this refiner, until `detach()` of what is returned.

        See `phoenix_d2.modeling.hook.RefinerHook`, for the arguments and errors too.
        """
        from phoenix_d2.modeling.hook import RefinerHook

        return RefinerHook(self.refiner, model, update_boxes=update_boxes, rescore=rescore, image_format=image_format)

    def save(self, path: str | Path) -> None:
        """Write a `.safetensors` file that `from_pretrained` reads."""
        save_refiner(self.refiner, path)


def _as_tensor(array: Array) -> Tensor:
    # tensors have no negative strides, which a reversed channel order leaves behind, and no read-only memory
    return array if isinstance(array, Tensor) else torch.from_numpy(np.require(array, requirements=("C", "W")))


def _check_image(image: Tensor) -> Tensor:
    if image.ndim == 3 and image.shape[2] == 3 and image.dtype == torch.uint8:
        return image
    remedy = "Use phoenix_d2.data.images.read_image, which turns any image file into that."
    raise ValueError(f"Expected an RGB image (H, W, 3) uint8, got {tuple(image.shape)} {image.dtype}. {remedy}")


def _to_numpy(result: RefinementResult) -> RefinementResult:
    arrays: dict[str, Any] = {field.name: getattr(result, field.name).cpu().numpy() for field in fields(result)}
    return RefinementResult(**arrays)
