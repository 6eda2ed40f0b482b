"""Mask2Former's config keys and architectures, from its repository or its package, Detectron2 compiled or not."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

from detectron2.config import CfgNode

from phoenix_d2.config import get_phoenix_cfg


def get_mask2former_cfg() -> CfgNode:
    """Detectron2's default config with the keys of Mask2Former and of phoenix_d2; registers "MaskFormer".

    Raises:
        ImportError: Mask2Former is not installed.
    """
    _replace_compiled_evaluation()
    try:
        import mask2former
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error}: install Mask2Former (projects/Mask2Former/README.md), or put its checkout on PYTHONPATH."
        ) from error
    _mend_criterion()
    cfg = get_phoenix_cfg()
    mask2former.add_maskformer2_config(cfg)
    return cfg


def _replace_compiled_evaluation() -> None:
    """Its evaluator for ADE20K imports an evaluation that exists only where Detectron2 is compiled."""
    name = "detectron2.evaluation.fast_eval_api"
    try:
        __import__(name)
    except ImportError:
        from pycocotools.cocoeval import COCOeval

        stand_in: Any = ModuleType(name)
        stand_in.COCOeval_opt = COCOeval
        sys.modules[name] = stand_in


def _mend_criterion() -> None:
    """The package's model passes `weight_dict`, which its criterion does not take; the repository's does."""
    from mask2former import maskformer_model

    broken = maskformer_model.SetCriterion
    if "weight_dict" in inspect.signature(broken).parameters:
        return

    class SetCriterion(broken):
        def __init__(self, num_classes: int, *, weight_dict: dict[str, float], **kwargs: Any) -> None:
            super().__init__(num_classes, class_weight=0, mask_weight=0, dice_weight=0, num_layers=0, **kwargs)
            self.weight_dict = weight_dict

    maskformer_model.SetCriterion = SetCriterion
