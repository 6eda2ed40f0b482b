"""META_ARCH `RefinedDetector`: any detector with a refiner behind it, by config alone."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNNWithTTA
from torch import nn

from phoenix_d2.modeling.build import build_trained_refiner
from phoenix_d2.modeling.hook import RefinerHook, hook_of


@META_ARCH_REGISTRY.register()
def RefinedDetector(cfg: CfgNode) -> nn.Module:
    """Build the detector `MODEL.REFINER.DETECTOR` and put the refiner of `MODEL.REFINER.WEIGHTS` behind it.

    What is returned is the detector itself with a `RefinerHook`: its class, training, inputs and state dict
    are its own, so that `MODEL.WEIGHTS` names the detector's checkpoint unchanged.

    Raises:
        ValueError: `MODEL.REFINER.DETECTOR` is this architecture, or the refiner cannot be built.
    """
    name = cfg.MODEL.REFINER.DETECTOR
    if name == cfg.MODEL.META_ARCHITECTURE:
        raise ValueError(
            f"MODEL.REFINER.DETECTOR is {name!r}, as MODEL.META_ARCHITECTURE is: name the architecture of the detector "
            "to be refined, such as 'GeneralizedRCNN'."
        )
    detector: nn.Module = META_ARCH_REGISTRY.get(name)(cfg)
    RefinerHook(
        build_trained_refiner(cfg),
        detector,
        outputs=cfg.MODEL.REFINER.OUTPUTS,
        update_boxes=cfg.MODEL.REFINER.UPDATE_BOXES,
        rescore=cfg.MODEL.REFINER.RESCORE,
        image_format=cfg.INPUT.FORMAT,
    )
    return detector


def RefinedDetectorWithTTA(cfg: CfgNode, model: nn.Module) -> GeneralizedRCNNWithTTA:
    """Detectron2's test-time augmentation of a detector with a refiner, in place of `GeneralizedRCNNWithTTA`.

    The views are detected without the refiner, and what was merged from them is refined once.

    Args:
        cfg: of the model.
        model: a `RefinedDetector`, or a `GeneralizedRCNN` that a refiner is attached to; stays as it is.

    Raises:
        ValueError: no refiner is attached to the model.
    """
    hook = hook_of(model)
    if hook is None:
        raise ValueError(
            f"No refiner is attached to this {type(model).__name__}: use GeneralizedRCNNWithTTA and attach."
        )
    augmented = GeneralizedRCNNWithTTA(cfg, model)
    RefinerHook(
        hook.refiner,
        augmented,
        outputs=hook.outputs,
        update_boxes=hook.update_boxes,
        rescore=hook.rescore,
        image_format=hook.image_format,
    )
    return augmented
