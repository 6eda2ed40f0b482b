"""segment-anything's ViT image encoders, built without the rest of the model, for images of any size."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn

PATCH_SIZE = 16

EMBED_DIMS = {"b": 768, "l": 1024, "h": 1280}

_SIZES: dict[str, dict[str, Any]] = {
    "b": {"depth": 12, "num_heads": 12, "global_attn_indexes": (2, 5, 8, 11)},
    "l": {"depth": 24, "num_heads": 16, "global_attn_indexes": (5, 11, 17, 23)},
    "h": {"depth": 32, "num_heads": 16, "global_attn_indexes": (7, 15, 23, 31)},
}

# what relative positions add to attention is held for as many heads at a time as fit into so many numbers; a GPU would
# rather hold half a gigabyte than work in small pieces
_MAX_BIAS, _MAX_BIAS_ON_GPU = 2**24, 2**27


class FusedAttention(Attention):
    """`segment_anything`'s Attention on PyTorch's fused one, which never holds the weights of all pixels for all."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, _ = x.shape
        num_pixels = height * width
        queries, keys, values = (
            self.qkv(x).reshape(batch, num_pixels, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        placed = queries.unflatten(2, (height, width))
        by_row = torch.einsum("bnhwc,hkc->bnhwk", placed, get_rel_pos(height, height, self.rel_pos_h))
        by_column = torch.einsum("bnhwc,wkc->bnhwk", placed, get_rel_pos(width, width, self.rel_pos_w))
        max_bias = _MAX_BIAS if x.device.type == "cpu" else _MAX_BIAS_ON_GPU
        heads = [
            F.scaled_dot_product_attention(q, k, v, (row[..., None] + column[..., None, :]).flatten(4).flatten(2, 3))
            for q, k, v, row, column in zip(
                *(
                    part.split(max(max_bias // (batch * num_pixels**2), 1), dim=1)
                    for part in (queries, keys, values, by_row, by_column)
                ),
                strict=True,
            )
        ]
        attended: Tensor = self.proj(torch.cat(heads, dim=1).transpose(1, 2).reshape(batch, height, width, -1))
        return attended


class ViTEncoder(ImageEncoderViT):
    """`segment_anything`'s ImageEncoderViT for square images whose side is any multiple of 16.

    Same parameters, and the same result at the size that they were trained at. For another, the absolute position
    embedding is interpolated; the relative ones already are, by the parent class.

    Args:
        arguments: those of `ImageEncoderViT`, with `use_rel_pos`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        for block in self.blocks:
            # the parent's blocks name their attention themselves
            block.attn.__class__ = FusedAttention

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 256, S / 16, S / 16)."""
        return self._embed(images)[0]

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding, and (B, C, S / 16, S / 16) features behind the first block of global attention."""
        assert self.pos_embed is not None
        x = self.patch_embed(images)
        x = x + resize_positions(self.pos_embed, (x.shape[1], x.shape[2]))
        early: Tensor | None = None
        for block in self.blocks:
            x = block(x)
            if early is None and block.window_size == 0:
                early = x
        assert early is not None
        return self.neck(x.permute(0, 3, 1, 2)), early.permute(0, 3, 1, 2)


class EarlyFeaturesViTEncoder(ViTEncoder):
    """A `ViTEncoder` that hands on early features behind its embedding, for HQ-SAM's decoder (see `sam.hq`)."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 256 + C, S / 16, S / 16), C channels of the ViT."""
        return torch.cat(self._embed(images), dim=1)


def resize_positions(positions: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate (1, h, w, C) position embeddings to another (height, width), bicubic with antialiasing."""
    if positions.shape[1:3] == size:
        return positions
    resized = F.interpolate(
        positions.permute(0, 3, 1, 2), size, mode="bicubic", antialias=True, align_corners=False
    ).permute(0, 2, 3, 1)
    return resized


def build_vit(size: Literal["b", "l", "h"], *, early_features: bool = False) -> ViTEncoder:
    """Build SAM's ViT-B (90 M parameters), ViT-L (308 M) or ViT-H (637 M, the paper's encoder).

    Args:
        size: which of them.
        early_features: hand on what HQ-SAM's decoder needs too.
    """
    encoder = EarlyFeaturesViTEncoder if early_features else ViTEncoder
    # the constants shared by all three, as in segment_anything.build_sam
    return encoder(
        img_size=1024,
        patch_size=PATCH_SIZE,
        embed_dim=EMBED_DIMS[size],
        mlp_ratio=4,
        out_chans=256,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        **_SIZES[size],
    )
