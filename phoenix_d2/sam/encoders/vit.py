"""segment-anything's ViT image encoders, built without the rest of the model."""

from __future__ import annotations

from functools import partial

from segment_anything.modeling import ImageEncoderViT
from torch import nn


def _build_vit(*, embed_dim: int, depth: int, num_heads: int, global_attn_indexes: tuple[int, ...]) -> ImageEncoderViT:
    # the constants shared by all three, as in segment_anything.build_sam
    return ImageEncoderViT(
        img_size=1024,
        patch_size=16,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=4,
        out_chans=256,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]  # any callable does
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=global_attn_indexes,
    )


def build_vit_b() -> ImageEncoderViT:
    """SAM's ViT-B: 91 M parameters."""
    return _build_vit(embed_dim=768, depth=12, num_heads=12, global_attn_indexes=(2, 5, 8, 11))


def build_vit_l() -> ImageEncoderViT:
    """SAM's ViT-L: 308 M parameters."""
    return _build_vit(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23))


def build_vit_h() -> ImageEncoderViT:
    """SAM's ViT-H, the paper's encoder: 637 M parameters."""
    return _build_vit(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31))
