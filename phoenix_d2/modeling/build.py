"""From config nodes to the pure parts: the only code that knows the keys of both."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from phoenix_d2.losses.criterion import RefinementCriterion
from phoenix_d2.losses.projector import Projector
from phoenix_d2.perturbation import NoiseSampler
from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.pseudo_targets import PointGridTeacher
from phoenix_d2.refiner import MaskRefiner, RefineOptions, half_dtype
from phoenix_d2.sam.build import build_refiner as build_sam_refiner
from phoenix_d2.sam.checkpoint import load_encoder
from phoenix_d2.sam.feature_cache import FeatureCache, cache_embeddings
from phoenix_d2.sam.pretrained import load_pretrained

_AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def build_refiner(cfg: CfgNode) -> MaskRefiner:
    """The refiner of `MODEL.PHOENIX`, with segment-anything's weights if `ENCODER.WEIGHTS` names them."""
    node = cfg.MODEL.PHOENIX
    prompter = CoarseMaskPrompter(
        points=node.PROMPT.POINTS,
        box=node.PROMPT.BOX,
        mask=node.PROMPT.MASK,
        mask_scale=node.PROMPT.MASK_SCALE,
        box_growth=node.PROMPT.BOX_GROWTH,
        compat=node.PROMPT.COMPAT,
    )
    refiner = build_sam_refiner(
        node.ENCODER.NAME, input_size=node.ENCODER.INPUT_SIZE, prompter=prompter, options=refine_options(cfg)
    )
    if node.ENCODER.WEIGHTS:
        load_encoder(refiner, PathManager.get_local_path(node.ENCODER.WEIGHTS))
    _cache_embeddings(cfg, refiner)
    return refiner


def refine_options(cfg: CfgNode, saved: RefineOptions | None = None) -> RefineOptions:
    """`MODEL.REFINER` as options of `MaskRefiner.refine`.

    Args:
        cfg: with this project's keys.
        saved: what keys that are None stay as; the defaults of `RefineOptions` when None.
    """
    node = cfg.MODEL.REFINER
    keys = {field.name: node[field.name.upper()] for field in fields(RefineOptions)}
    return replace(saved or RefineOptions(), **{name: value for name, value in keys.items() if value is not None})


def build_noise_sampler(cfg: CfgNode, **changes: Any) -> NoiseSampler:
    """The noise of `MODEL.PHOENIX.PERTURBATION`.

    Args:
        cfg: with this project's keys.
        changes: arguments of `NoiseSampler` that replace the config's.
    """
    node = cfg.MODEL.PHOENIX.PERTURBATION
    arguments = {
        "iou_range": tuple(node.IOU_RANGE),
        "guides": tuple(node.GUIDES),
        "morphology_prob": node.MORPHOLOGY_PROB,
        "shapeless_prob": node.SHAPELESS_PROB,
        "degradation_prob": node.DEGRADATION_PROB,
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


def build_teacher(cfg: CfgNode, refiner: MaskRefiner) -> PointGridTeacher | None:
    """What finds the targets where `MODEL.PHOENIX.TARGET` is "pseudo", None where it is "annotation".

    Raises:
        ValueError: it is neither, or a value of `MODEL.PHOENIX.PSEUDO` is out of range.
    """
    node = cfg.MODEL.PHOENIX
    if node.TARGET == "annotation":
        return None
    if node.TARGET != "pseudo":
        raise ValueError(f"MODEL.PHOENIX.TARGET is {node.TARGET!r}: expected 'annotation' or 'pseudo'.")
    return PointGridTeacher(
        refiner,
        grid_size=node.PSEUDO.GRID_SIZE,
        min_iou=node.PSEUDO.MIN_IOU,
        num_targets=node.DATA.MASKS_PER_IMAGE,
    )


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Arithmetic of encoder and decoder in training: `MODEL.PHOENIX.AMP_DTYPE`, or None where AMP is off.

    Raises:
        ValueError: the key names no type that autocast works in, or one that the GPU does not compute in.
    """
    name = cfg.MODEL.PHOENIX.AMP_DTYPE
    if name not in _AMP_DTYPES:
        raise ValueError(f"MODEL.PHOENIX.AMP_DTYPE is {name!r}: expected one of {', '.join(_AMP_DTYPES)}.")
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    device = torch.device(cfg.MODEL.DEVICE)
    # no silent change of type: with float16, the trainer scales losses
    if device.type == "cuda" and name == "bfloat16" and half_dtype(device) == torch.float16:
        raise ValueError(
            "MODEL.PHOENIX.AMP_DTYPE is 'bfloat16', which this GPU only emulates, slowly (its compute capability is "
            "below 8): set it to 'float16', or SOLVER.AMP.ENABLED to False."
        )
    return _AMP_DTYPES[name]


def build_feature_cache(cfg: CfgNode) -> FeatureCache | None:
    """The cache in the folder `MODEL.PHOENIX.FEATURE_CACHE`, or None where that is "".

    Raises:
        ValueError: no view of an image is ever seen again, or the limit is not positive.
    """
    node = cfg.MODEL.PHOENIX
    if not node.FEATURE_CACHE:
        return None
    if node.DATA.NUM_VIEWS == 0:
        raise ValueError(
            f"MODEL.PHOENIX.FEATURE_CACHE is {node.FEATURE_CACHE!r}, but every view of an image is a new one: set "
            "MODEL.PHOENIX.DATA.NUM_VIEWS, to 8 for instance."
        )
    return FeatureCache(node.FEATURE_CACHE, max_bytes=round(node.FEATURE_CACHE_GB * 1e9))


def build_criterion(cfg: CfgNode, *, cmrl: bool = True) -> RefinementCriterion:
    """The losses of `MODEL.PHOENIX`.

    Args:
        cfg: with this project's keys.
        cmrl: off for segment-anything's losses alone.
    """
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
    """The refiner of `MODEL.REFINER.WEIGHTS` on `MODEL.DEVICE`, for use.

    Encoder, input size and prompts are those that the weights were trained with, whatever `MODEL.PHOENIX`
    says; only the frozen weights of a ViT come from `MODEL.PHOENIX.ENCODER.WEIGHTS`.

    Raises:
        FileNotFoundError: there is no such file, nor packaged weights of that name.
        ValueError: `MODEL.REFINER.WEIGHTS` is not set, damaged, or was trained with other encoder weights.
    """
    if not cfg.MODEL.REFINER.WEIGHTS:
        raise ValueError("MODEL.REFINER.WEIGHTS is empty: name the weights of a trained refiner.")
    encoder_weights = cfg.MODEL.PHOENIX.ENCODER.WEIGHTS
    refiner = load_pretrained(
        PathManager.get_local_path(cfg.MODEL.REFINER.WEIGHTS),
        encoder_weights=PathManager.get_local_path(encoder_weights) if encoder_weights else None,
    )
    refiner.options = refine_options(cfg, refiner.options)
    _cache_embeddings(cfg, refiner)
    if cfg.MODEL.REFINER.COMPILE:
        refiner.compile_network()
    return refiner.to(cfg.MODEL.DEVICE).eval()


def _cache_embeddings(cfg: CfgNode, refiner: MaskRefiner) -> None:
    node = cfg.MODEL.REFINER
    if node.EMBEDDING_CACHE:
        cache_embeddings(refiner, node.EMBEDDING_CACHE, max_gigabytes=node.EMBEDDING_CACHE_GB)
