"""Optimiser and gradient clipping."""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over what requires gradients, betas 0.9 and 0.999 (paper B.2), clipping as `SOLVER.CLIP_GRADIENTS` says."""
    parameters = get_default_optimizer_params(
        model, base_lr=cfg.SOLVER.BASE_LR, weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM
    )
    optimizer = torch.optim.AdamW(parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
    if cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == "full_model":
        return optimizer
    clipped: torch.optim.Optimizer = maybe_add_gradient_clipping(cfg, optimizer)
    return clipped


def build_clipper(cfg: CfgNode, model: nn.Module) -> Callable[[], torch.Tensor] | None:
    """Clip the norm of all gradients together, where `CLIP_TYPE` is "full_model"; returns the norm before.

    Detectron2's own "norm" clips each parameter by itself, which is another thing than the paper's
    maximum norm of 0.1.
    """
    node = cfg.SOLVER.CLIP_GRADIENTS
    if not (node.ENABLED and node.CLIP_TYPE == "full_model"):
        return None
    parameters = [p for p in model.parameters() if p.requires_grad]
    return lambda: nn.utils.clip_grad_norm_(parameters, node.CLIP_VALUE, norm_type=node.NORM_TYPE)
