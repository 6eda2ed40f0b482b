"""TinyViT as MobileSAM (Zhang et al. 2023) and the light HQ-SAM use it, from the package `segment-anything-hq`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

EARLY_CHANNELS = 160


def build_tiny_vit(*, early_features: bool = False) -> nn.Module:
    """Build TinyViT-5M for images of 1,024 pixels, and no others.

    Args:
        early_features: hand on what HQ-SAM's decoder needs too (see `sam.hq`).

    Raises:
        ImportError: the packages of the extra `encoders` are not installed.
    """
    try:
        with warnings.catch_warnings():
            # about names of timm that moved, and models that it has too
            warnings.simplefilter("ignore")
            from segment_anything_hq import sam_model_registry
    except ImportError as error:
        raise ImportError("TinyViT needs two more packages: pip install 'phoenix_d2[encoders]'.") from error
    encoder: nn.Module = sam_model_registry["vit_tiny"]().image_encoder
    # its convolutions are a seventh faster so on a CPU (benchmarks/encoders.py)
    encoder.to(memory_format=torch.channels_last)
    # hooks, since a wrapper would rename the parameters
    encoder.register_forward_hook(_with_early_features if early_features else _embedding_alone)
    encoder.register_load_state_dict_post_hook(_refresh_attention_biases)
    return encoder


def _embedding_alone(_module: nn.Module, _inputs: Any, output: tuple[Tensor, list[Tensor]]) -> Tensor:
    return output[0]


def _with_early_features(_module: nn.Module, _inputs: Any, output: tuple[Tensor, list[Tensor]]) -> Tensor:
    embedding, early = output
    return torch.cat([embedding, early[0].permute(0, 3, 1, 2)], dim=1)


def _refresh_attention_biases(module: nn.Module, _keys: Any) -> None:
    """Spread newly loaded attention biases, which TinyViT does when it enters evaluation mode and never again."""
    module.train(module.training)
