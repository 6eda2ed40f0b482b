"""The user's object: masks in, better masks out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phoenix_d2.evidence import MaskSource
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.sam.checkpoint import save_refiner
from phoenix_d2.sam.feature_cache import cache_embeddings
from phoenix_d2.sam.pretrained import load_pretrained
from phoenix_d2.semantic import LabelRefinement, refine_labels
from phoenix_d2.structures import RefinementResult

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

    from phoenix_d2.modeling.hook import RefinerHook

Array: TypeAlias = NDArray[Any] | Tensor
_Result = TypeVar("_Result", RefinementResult, LabelRefinement)


def find_device(device: str | torch.device | None = None) -> torch.device:
    """The device of that name; where None, "cuda" if there is one, else "cpu".

    Raises:
        ValueError: this machine or this PyTorch has none of that name.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=device).device
    # PyTorch without CUDA asserts that it has it
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"The device {str(device)!r} cannot be used here ({reason}): name another.") from error


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
        device: str | torch.device | None = None,
    ) -> PhoenixRefiner:
        """Load a trained refiner.

        Args:
            name_or_path: weights that come with the package, by name, a `.safetensors` or training checkpoint, or an
                official checkpoint, by path or by its encoder's name (`phoenix-weights list`): an untrained refiner.
            encoder_weights: official checkpoint, by path or by its encoder's name, for a trained refiner whose encoder
                has one; where None, the downloaded one is taken, if there is one.
            input_size: side of the model input in pixels, where it is to be another than in training; a gate that was
                calibrated for one need not suit another.
            device: to refine on; "cuda" if there is one, else "cpu", when None.

        Raises:
            FileNotFoundError: there is no such file, nor packaged weights of that name.
            ValueError: the file is damaged, was trained with other encoder weights, its encoder does not take images of
                that side, or there is no such device.
        """
        refiner = load_pretrained(name_or_path, encoder_weights=encoder_weights, input_size=input_size)
        return cls(refiner.to(find_device(device)))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PhoenixRefiner:
        """Load `MODEL.REFINER.WEIGHTS`; keys of that node that are not None replace the options stored with them.

        Raises:
            FileNotFoundError: there is no such file, nor packaged weights of that name.
            ValueError: no weights are named, the file is damaged, or was trained with other encoder weights.
        """
        from phoenix_d2.modeling.build import build_trained_refiner

        return cls(build_trained_refiner(cfg))

    def cache_embeddings(self, folder: str | Path, *, max_gigabytes: float = 10.0) -> None:
        """Keep the embeddings of images and zoomed windows in a folder, so that no refiner encodes them again.

        From then on embeddings are rounded to half precision, those that are computed as those that are found: masks
        may differ in single pixels from those without a cache, and never depend on what is in it. An entry belongs to
        pixels and encoder weights, not to file names, so that a changed image or encoder is encoded anew. Any number
        of processes and of refiners may share the folder.

        Args:
            folder: is made if there is none.
            max_gigabytes: of all entries together, in 10^9 bytes; the least recently used are deleted first.

        Raises:
            OSError: the folder cannot be made.
            ValueError: the limit is not a positive number, or `folder` a file.
        """
        cache_embeddings(self.refiner, folder, max_gigabytes=max_gigabytes)

    @property
    def options(self) -> RefineOptions:
        """Passes, chunk size and zoom, used where `refine` is not told otherwise."""
        return self.refiner.options

    def with_options(self, **options: Any) -> PhoenixRefiner:
        """The same network, its weights shared, with other options.

            refiner.with_options(gate="off").attach(detector)

        Args:
            options: fields of `RefineOptions` to change.

        Raises:
            TypeError: there is no such option.
            ValueError: an option is out of range.
        """
        network = copy.copy(self.refiner)
        network.options = replace(self.options, **options)
        return PhoenixRefiner(network)

    def refine(
        self,
        image: Array,
        masks: Array,
        points: Array | None = None,
        boxes: Array | None = None,
        *,
        point_labels: Array | None = None,
        source: MaskSource | None = None,
        keep_logits: bool = False,
        **options: Any,
    ) -> RefinementResult:
        """Refine the masks of one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            masks: (N, H, W) bool.
            points: (N, K, 2) float (x, y) in pixels, visual cues that replace the derived points (paper A.2).
            boxes: (N, 4) XYXY in pixels, exclusive maxima, that replace the derived boxes.
            point_labels: (N, K), 1 on the object, 0 off it, -1 for no point; all 1 when None.
            source: what other images have shown of where the masks come from; the gate is the less cautious the more
                it knows.
            keep_logits: give back `low_res_logits` too, which take more memory than all else.
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
            source=source,
            options=replace(self.options, **options),
            keep_logits=keep_logits,
        )
        return _to_numpy(result) if isinstance(masks, np.ndarray) else result

    def refine_labels(
        self,
        image: Array,
        labels: Array,
        *,
        background: int | None = None,
        void: int | None = 255,
        source: MaskSource | None = None,
        **options: Any,
    ) -> LabelRefinement:
        """Refine the semantic label map of one image, part by part (see `phoenix_d2.semantic`).

        Args:
            image: (H, W, 3) uint8 RGB.
            labels: (H, W) integer.
            background: a label that is no class: it gets what classes give up. None where every label is a class.
            void: the label of pixels that are nobody's and stay so; None where there are none.
            source: as in `refine`.
            options: fields of `RefineOptions` to change for this call.

        Returns:
            The refined map, and what became of its parts; arrays or tensors, as `labels` was.

        Raises:
            TypeError: there is no such option.
            ValueError: image, labels or options are not as described.
        """
        result = refine_labels(
            self.refiner,
            _check_image(_as_tensor(image)).permute(2, 0, 1),
            _as_tensor(labels),
            background=background,
            void=void,
            source=source,
            options=replace(self.options, **options),
        )
        return _to_numpy(result) if isinstance(labels, np.ndarray) else result

    def attach(
        self,
        model: nn.Module,
        *,
        outputs: Sequence[str] = ("instances", "sem_seg", "panoptic_seg"),
        update_boxes: bool = False,
        rescore: bool = False,
        image_format: Literal["RGB", "BGR"] | None = None,
    ) -> RefinerHook:
        """Make a built Detectron2 model pass its masks through this refiner, until `detach()` of what is returned.

        See `phoenix_d2.modeling.hook.RefinerHook`, for the arguments and errors too.
        """
        from phoenix_d2.modeling.hook import RefinerHook

        return RefinerHook(
            self.refiner,
            model,
            outputs=outputs,
            update_boxes=update_boxes,
            rescore=rescore,
            image_format=image_format,
        )

    def save(self, path: str | Path) -> None:
        """Write a `.safetensors` file that `from_pretrained` reads."""
        save_refiner(self.refiner, path)


def _as_tensor(array: Array) -> Tensor:
    if isinstance(array, str | Path):
        raise ValueError(f"Expected an array, got {str(array)!r}: read it with phoenix_d2.data.images.read_image.")
    # tensors have no negative strides, which a reversed channel order leaves behind, and no read-only memory
    return array if isinstance(array, Tensor) else torch.from_numpy(np.require(array, requirements=("C", "W")))


def _check_image(image: Tensor) -> Tensor:
    if image.ndim == 3 and image.shape[2] == 3 and image.dtype == torch.uint8:
        return image
    remedy = "Use phoenix_d2.data.images.read_image, which turns any image file into that."
    raise ValueError(f"Expected an RGB image (H, W, 3) uint8, got {tuple(image.shape)} {image.dtype}. {remedy}")


def _to_numpy(result: _Result) -> _Result:
    arrays: dict[str, Any] = {field.name: getattr(result, field.name).cpu().numpy() for field in fields(result)}
    return type(result)(**arrays)
