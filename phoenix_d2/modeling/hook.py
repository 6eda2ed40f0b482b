"""A refiner behind a detector that is already built."""

from __future__ import annotations

from collections.abc import Collection
from types import TracebackType
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from phoenix_d2.evidence import SourceMemory
from phoenix_d2.modeling.refine_outputs import OUTPUTS, refine_output
from phoenix_d2.refiner import MaskRefiner

_IMAGE_FORMATS = ("RGB", "BGR")
_WRAPPERS = (DataParallel, DistributedDataParallel)
# the method of Detectron2's test-time augmentation, and of Mask2Former's, that makes one image's output
_PER_IMAGE = "_inference_one_image"


class RefinerHook:
    """Makes a Detectron2 model refine the masks that it predicts, until `detach()`.

        hook = RefinerHook(refiner, model)
        outputs = model(inputs)            # with refined masks
        hook.detach()

        with RefinerHook(refiner, model):  # the same, detached at the end of the block
            outputs = model(inputs)

    What the model returns in evaluation keeps its structure: "instances", "sem_seg" and "panoptic_seg" are
    replaced (see `refine_output`), other keys stay. In training the model's losses stay. The refiner does not
    become a part of the model: not of its state dict, not of its parameters, and `model.to(...)` leaves it
    where it is; masks travel to its device and back. Copies and pickles of the model bring the hook along.

    The image that the refiner sees is the one that the model was given, brought to the size of the
    outputs: see `image_in_output_frame` for what that costs. Of a model in `DataParallel` or
    `DistributedDataParallel` the model itself gets the hook, so that calls past the wrapper are refined too.

    Test-time augmentation calls `model.inference(...)`, which no hook sees: there, attach to the
    `GeneralizedRCNNWithTTA` itself (`RefinedDetectorWithTTA` does). What it merged from all views is refined once.

    The gate comes to know the model's masks from image to image (see `memory`), and grows less cautious on the way.

    Args:
        refiner: in evaluation mode.
        model: takes and returns a list of dicts, as Detectron2's models do.
        outputs: the fields to refine where the model has them; each costs its masks.
        update_boxes: let `pred_boxes` follow the refined masks.
        rescore: multiply `scores` by the predicted IoU of the refined masks.
        image_format: order of channels in inputs["image"], "RGB" or "BGR" (the model's `cfg.INPUT.FORMAT`);
            what the model says in `model.input_format` when None.

    Attributes:
        memory: of the model's masks; assign one that was filled before to decide on all images alike.

    Raises:
        ValueError: `model` is no nn.Module, the format is unknown, the model bypasses hooks, or already has a refiner.
    """

    def __init__(
        self,
        refiner: MaskRefiner,
        model: nn.Module,
        *,
        outputs: Collection[str] = OUTPUTS,
        update_boxes: bool = False,
        rescore: bool = False,
        image_format: str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            remedy = "pass its .model" if hasattr(model, "model") else "pass the model itself"
            raise ValueError(f"Expected a model, an nn.Module, got a {type(model).__name__}: {remedy}.")
        model = _unwrapped(model)
        _check_attachable(model)
        _check_outputs(outputs)
        self.refiner = refiner
        self.outputs = tuple(outputs)
        self.update_boxes = update_boxes
        self.rescore = rescore
        self.memory = SourceMemory()
        detector = _unwrapped(model.get_submodule("model")) if _is_augmenting(model) else model
        self.image_format = _check_format(image_format or getattr(detector, "input_format", None), model)
        self._handle = (
            _AugmentationHandle(self, model)
            if _is_augmenting(model)
            else model.register_forward_hook(self, with_kwargs=True)
        )

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
        """Called by PyTorch after the model's `forward`; what it returns replaces the outputs."""
        if model.training:
            return outputs
        batched_inputs = args[0] if args else kwargs["batched_inputs"]
        return [self.refine(inputs, output) for inputs, output in zip(batched_inputs, outputs, strict=True)]

    def refine(self, inputs: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        """Refine what the model said of one image, from its "image" in the inputs; see `refine_output`."""
        return refine_output(
            self.refiner,
            inputs["image"],
            output,
            image_format=self.image_format,
            outputs=self.outputs,
            update_boxes=self.update_boxes,
            rescore=self.rescore,
            memory=self.memory,
        )

    def detach(self) -> None:
        """Give the model its own masks back; a second call does nothing."""
        self._handle.remove()

    def __enter__(self) -> RefinerHook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()


def hook_of(model: nn.Module) -> RefinerHook | None:
    """The hook that is attached to a model, or None."""
    model = _unwrapped(model)
    handle = vars(model).get(_PER_IMAGE)
    hooks = [handle.hook if isinstance(handle, _AugmentationHandle) else None, *model._forward_hooks.values()]
    return next((hook for hook in hooks if isinstance(hook, RefinerHook)), None)


class _AugmentationHandle:
    """Refines what test-time augmentation makes of an image, until it is removed.

    Detectron2's replaces `__call__`, and with it hooks. It makes one call an image of a method, which an attribute of
    the object hides. That call, unlike those of the model, is given the image where the data set gave only its file.
    """

    def __init__(self, hook: RefinerHook, model: nn.Module) -> None:
        self.hook = hook
        self.model = model
        setattr(model, _PER_IMAGE, self)

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        output = getattr(type(self.model), _PER_IMAGE)(self.model, inputs)
        return self.hook.refine(inputs, output)

    def remove(self) -> None:
        vars(self.model).pop(_PER_IMAGE, None)


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, _WRAPPERS) else model


def _is_augmenting(model: nn.Module) -> bool:
    return _replaces_call(model) and hasattr(type(model), _PER_IMAGE)


def _replaces_call(model: nn.Module) -> bool:
    return type(model).__call__ is not nn.Module.__call__


def _check_attachable(model: nn.Module) -> None:
    name = type(model).__name__
    if _replaces_call(model) and not _is_augmenting(model):
        raise ValueError(
            f"{name} replaces nn.Module.__call__, which runs hooks: pass its outputs to "
            "phoenix_d2.modeling.refine_outputs.refine_output instead."
        )
    # refining twice is seldom meant, and easily done by running a notebook's cell again
    if hook_of(model):
        raise ValueError(f"This {name} already has a refiner: call detach() of the hook that put it there first.")


def _check_outputs(outputs: Collection[str]) -> None:
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or isinstance(outputs, str):
        raise ValueError(f"Unknown outputs {outputs!r}: expected a list of some of {', '.join(OUTPUTS)}.")


def _check_format(image_format: str | None, model: nn.Module) -> str:
    if image_format in _IMAGE_FORMATS:
        return image_format
    raise ValueError(
        f"Image format {image_format!r} for {type(model).__name__}: expected 'RGB' or 'BGR'. "
        "Pass image_format=cfg.INPUT.FORMAT of the model's config."
    )
