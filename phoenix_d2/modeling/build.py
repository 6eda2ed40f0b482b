"""From config nodes to the pure parts: the only code that knows the keys of both."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from phoenix_d2.losses.criterion import RefinementCriterion
from phoenix_d2.losses.projector import Projector
from phoenix_d2.perturbation import NoiseSampler
from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.sam.build import build_refiner as build_sam_refiner
from phoenix_d2.sam.checkpoint import load_encoder, load_trained


def build_refiner(cfg: CfgNode) -> MaskRefiner:
    """The refiner of `MODEL.PHOENIX`, with segment-anything's weights if `ENCODER.WEIGHTS` names them."""
    node = cfg.MODEL.PHOENIX
    prompter = CoarseMaskPrompter(
        points=node.PROMPT.POINTS,
        box=node.PROMPT.BOX,
        mask=node.PROMPT.MASK,
        mask_scale=node.PROMPT.MASK_SCALE,
        box_growth=node.PROMPT.BOX_GROWTH,
    )
    refiner = build_sam_refiner(node.ENCODER.NAME, prompter=prompter, options=refine_options(cfg))
    if node.ENCODER.WEIGHTS:
        load_encoder(refiner, PathManager.get_local_path(node.ENCODER.WEIGHTS))
    return refiner


def refine_options(cfg: CfgNode) -> RefineOptions:
    """`MODEL.REFINER` as options of `MaskRefiner.refine`."""
    node = cfg.MODEL.REFINER
    return RefineOptions(
        num_iters=node.NUM_ITERS,
        chunk_size=node.CHUNK_SIZE,
        zoom_small=node.ZOOM_SMALL,
        zoom_below=node.ZOOM_BELOW,
        zoom_context=node.ZOOM_CONTEXT,
    )


def build_noise_sampler(cfg: CfgNode, **changes: Any) -> NoiseSampler:
    """The noise of `MODEL.PHOENIX.PERTURBATION`; `changes` replace arguments."""
    node = cfg.MODEL.PHOENIX.PERTURBATION
    arguments = {
        "iou_range": tuple(node.IOU_RANGE),
        "guides": tuple(node.GUIDES),
        "morphology_prob": node.MORPHOLOGY_PROB,
        "min_iou": node.MIN_IOU,
        "num_embeddings": node.NUM_EMBEDDINGS,
        "init_std": node.INIT_STD,
        "step_size": node.STEP_SIZE,
        "step_decay": node.STEP_DECAY,
        "max_steps": node.MAX_STEPS,
        "max_decays": node.MAX_DECAYS,
        "iou_margin": node.IOU_MARGIN,
        "criterion": node.CRITERION,
    }
    return NoiseSampler(**arguments | changes)


def build_criterion(cfg: CfgNode, *, cmrl: bool = True) -> RefinementCriterion:
    """The losses of `MODEL.PHOENIX`; without `cmrl`, segment-anything's alone."""
    node = cfg.MODEL.PHOENIX
    weight = node.CMRL.WEIGHT if cmrl else 0.0
    return RefinementCriterion(
        projector=Projector(num_layers=node.CMRL.PROJECTOR_LAYERS) if weight > 0 else nn.Identity(),
        focal_weight=node.LOSS.FOCAL_WEIGHT,
        dice_weight=node.LOSS.DICE_WEIGHT,
        iou_weight=node.LOSS.IOU_WEIGHT,
        train_single_mask=node.LOSS.TRAIN_SINGLE_MASK,
        cmrl_weight=weight,
        intra_weight=node.CMRL.INTRA_WEIGHT,
        inter_weight=node.CMRL.INTER_WEIGHT,
        self_weight=node.CMRL.SELF_WEIGHT,
        temperature=node.CMRL.TEMPERATURE,
        num_samples=node.CMRL.NUM_SAMPLES,
        # B.6: 512 for the self term where the others take 256
        num_self_samples=2 * node.CMRL.NUM_SAMPLES,
        inter_form=node.CMRL.INTER_FORM,
        count_new_errors=node.CMRL.COUNT_NEW_ERRORS,
    )


def build_trained_refiner(cfg: CfgNode) -> MaskRefiner:
    """The refiner of `MODEL.PHOENIX` with the weights `MODEL.REFINER.WEIGHTS` on `MODEL.DEVICE`, for use.

    Raises:
        ValueError: `MODEL.REFINER.WEIGHTS` is not set, or was trained with another encoder.
    """
    if not cfg.MODEL.REFINER.WEIGHTS:
        raise ValueError("MODEL.REFINER.WEIGHTS is empty: name the weights of a trained refiner.")
    refiner = build_refiner(cfg)
    load_trained(refiner, PathManager.get_local_path(cfg.MODEL.REFINER.WEIGHTS))
    return refiner.to(cfg.MODEL.DEVICE).eval()
