"""The user's object: masks in, better masks out."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.sam.checkpoint import load_encoder, load_trained, read_metadata, save_refiner
from phoenix_d2.structures import RefinementResult

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

    from phoenix_d2.modeling.hook import RefinerHook

Array = NDArray[Any] | Tensor

WEIGHTS_DIR = Path(__file__).parent / "weights"


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
        cls, name_or_path: str | Path, *, encoder_weights: str | Path | None = None, device: str | torch.device = "cpu"
    ) -> PhoenixRefiner:
        """Load a trained refiner.

        Args:
            name_or_path: weights that come with the package, by name, or a `.safetensors` or training checkpoint.
            encoder_weights: segment-anything's checkpoint, for a refiner whose encoder is one of its ViTs.
            device: to refine on.

        Raises:
            FileNotFoundError: there is no such file, nor packaged weights of that name.
            ValueError: the file is damaged, or was trained with other encoder weights.
        """
        path = _find_weights(name_or_path)
        metadata = read_metadata(path)
        if "encoder" not in metadata:
            raise ValueError(f"{path} does not say which encoder it belongs to: it is no file of a trained refiner.")
        prompter, options = CoarseMaskPrompter(**metadata["prompter"]), RefineOptions(**metadata["options"])
        refiner = build_refiner(metadata["encoder"], prompter=prompter, options=options)
        if encoder_weights is not None:
            load_encoder(refiner, encoder_weights)
        load_trained(refiner, path)
        return cls(refiner.to(device))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PhoenixRefiner:
        """Build from `MODEL.PHOENIX` and `MODEL.REFINER` of a Detectron2 config, weights from `MODEL.REFINER.WEIGHTS`."""
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
            point_labels: (N, K), 1 on the object, 0 off it; all 1 when None.
            options: fields of `RefineOptions` to change for this call, such as `num_iters`.

        Returns:
            The result, its fields of the kind (array or tensor) that `masks` was.

        Raises:
            ValueError: image, masks, points or boxes are not as described.
        """
        pixels = _check_image(torch.as_tensor(image))
        cues = (None if cue is None else torch.as_tensor(cue) for cue in (points, point_labels, boxes))
        given_points, given_labels, given_boxes = cues
        result = self.refiner.refine(
            pixels.permute(2, 0, 1),
            torch.as_tensor(masks),
            points=None if given_points is None else given_points.float(),
            point_labels=given_labels,
            boxes=None if given_boxes is None else given_boxes.float(),
            options=replace(self.options, **options),
        )
        return _to_numpy(result) if isinstance(masks, np.ndarray) else result

    def attach(self, model: nn.Module, *, update_boxes: bool = False, rescore: bool = False) -> RefinerHook:
        """Make a built Detectron2 model pass its masks through this refiner, until `detach()` of what is returned.

        See `phoenix_d2.modeling.hook.RefinerHook`.
        """
        from phoenix_d2.modeling.hook import RefinerHook

        return RefinerHook(self.refiner, model, update_boxes=update_boxes, rescore=rescore)

    def save(self, path: str | Path) -> None:
        """Write a `.safetensors` file that `from_pretrained` reads."""
        save_refiner(self.refiner, path)


def _find_weights(name_or_path: str | Path) -> Path:
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    packaged = WEIGHTS_DIR / f"{name_or_path}.safetensors"
    if packaged.is_file():
        return packaged
    names = sorted(path.stem for path in WEIGHTS_DIR.glob("*.safetensors"))
    raise FileNotFoundError(
        f"No weights {str(name_or_path)!r}: expected a file, or one of the weights that come with the package "
        f"({', '.join(names) or 'none in this version'})."
    )


def _check_image(image: Tensor) -> Tensor:
    if image.ndim == 3 and image.shape[2] == 3 and image.dtype == torch.uint8:
        return image
    remedy = "Use phoenix_d2.data.images.read_image, which turns any image file into that."
    raise ValueError(f"Expected an RGB image (H, W, 3) uint8, got {tuple(image.shape)} {image.dtype}. {remedy}")


def _to_numpy(result: RefinementResult) -> RefinementResult:
    arrays: dict[str, Any] = {field.name: getattr(result, field.name).cpu().numpy() for field in fields(result)}
    return RefinementResult(**arrays)
