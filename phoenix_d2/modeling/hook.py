"""A refiner behind a detector that is already built."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from detectron2.structures import Instances
from torch import Tensor, nn

from phoenix_d2.modeling.refine_outputs import image_in_output_frame, refine_instances
from phoenix_d2.refiner import MaskRefiner

_IMAGE_FORMATS = ("RGB", "BGR")


class RefinerHook:
    """Makes a Detectron2 model refine the masks that it predicts, until `detach()`.

        hook = RefinerHook(refiner, model)
        outputs = model(inputs)            # "instances" hold refined masks
        hook.detach()

        with RefinerHook(refiner, model):  # the same, detached at the end of the block
            outputs = model(inputs)

    What the model returns in evaluation keeps its structure: only "instances" are replaced (see
    `refine_instances`), other keys such as "sem_seg" and "panoptic_seg" stay. In training the model's
    losses stay. The refiner does not become a part of the model: not of its state dict, not of its
    parameters, and `model.to(...)` leaves it where it is; masks travel to its device and back. Copies and
    pickles of the model bring the hook along.

    The image that the refiner sees is the one that the model was given, brought to the size of the
    outputs: see `image_in_output_frame` for what that costs.

    Args:
        refiner: in evaluation mode.
        model: takes and returns a list of dicts, as Detectron2's models do. Only calls of `model(...)` are
            seen, not those of `model.inference(...)`, which Detectron2's test-time augmentation makes.
        update_boxes: let `pred_boxes` follow the refined masks.
        rescore: multiply `scores` by the predicted IoU of the refined masks.
        image_format: order of channels in inputs["image"], "RGB" or "BGR" (the model's `cfg.INPUT.FORMAT`);
            what the model says in `model.input_format` when None.

    Raises:
        ValueError: the format is unknown, the model bypasses hooks, or already has a refiner.
    """

    def __init__(
        self,
        refiner: MaskRefiner,
        model: nn.Module,
        *,
        update_boxes: bool = False,
        rescore: bool = False,
        image_format: str | None = None,
    ) -> None:
        _check_attachable(model)
        self.refiner = refiner
        self.update_boxes = update_boxes
        self.rescore = rescore
        self.image_format = _check_format(image_format or getattr(model, "input_format", None), model)
        self._handle = model.register_forward_hook(self, with_kwargs=True)

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        """Called by PyTorch after the model's `forward`; what it returns replaces the outputs."""
        if model.training:
            return outputs
        batched_inputs = args[0] if args else kwargs["batched_inputs"]
        return [
            {**output, "instances": self._refine(inputs["image"], output["instances"])}
            if "instances" in output
            else output
            for inputs, output in zip(batched_inputs, outputs, strict=True)
        ]

    def detach(self) -> None:
        """Give the model its own masks back; a second call does nothing."""
        self._handle.remove()

    def __enter__(self) -> RefinerHook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def _refine(self, image: Tensor, instances: Instances) -> Instances:
        image = image_in_output_frame(image.to(self.refiner.device), instances.image_size, self.image_format)
        return refine_instances(self.refiner, image, instances, update_boxes=self.update_boxes, rescore=self.rescore)


def _check_attachable(model: nn.Module) -> None:
    name = type(model).__name__
    if type(model).__call__ is not nn.Module.__call__:
        raise ValueError(
            f"{name} replaces nn.Module.__call__, which runs hooks: pass its outputs to "
            "phoenix_d2.modeling.refine_outputs.refine_instances instead."
        )
    # refining twice is seldom meant, and easily done by running a notebook's cell again
    if any(isinstance(hook, RefinerHook) for hook in model._forward_hooks.values()):
        raise ValueError(f"This {name} already has a refiner: call detach() of the hook that put it there first.")


def _check_format(image_format: str | None, model: nn.Module) -> str:
    if image_format in _IMAGE_FORMATS:
        return image_format
    raise ValueError(
        f"Image format {image_format!r} for {type(model).__name__}: expected 'RGB' or 'BGR'. "
        "Pass image_format=cfg.INPUT.FORMAT of the model's config."
    )
