"""segment-anything's two-way transformer with fused attention."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling import TwoWayTransformer as SamTwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor


class TwoWayTransformer(SamTwoWayTransformer):
    """`segment_anything`'s TwoWayTransformer between some tokens and the many pixels of an image.

    Same parameters and mathematics as the parent class. What a pixel is asked with, and what it asks with, are read
    from it and from its positional encoding apart, since the encoding's part is one for all masks, and attention is
    PyTorch's fused one: what remains on a CPU are matrix products, where the parent mostly copies and adds.
    """

    def forward(self, image_embedding: Tensor, image_pe: Tensor, point_embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Let tokens and pixels attend to each other.

        Args:
            image_embedding: (N, C, h, w).
            image_pe: (1, C, h, w), positional encoding of the pixels.
            point_embedding: (N, T, C) tokens, which are their own positional encoding.

        Returns:
            (N, T, C) tokens and (N, h * w, C) pixels.
        """
        pixels = image_embedding.flatten(2).transpose(1, 2).contiguous()
        pixel_pe = image_pe[:1].flatten(2).transpose(1, 2).contiguous()
        tokens = point_embedding
        for layer in self.layers:
            tokens, pixels = _two_way(cast(TwoWayAttentionBlock, layer), tokens, pixels, point_embedding, pixel_pe)
        attention = self.final_attn_token_to_image
        keys, values = _project_pixels(pixels, pixel_pe, attention)
        queries = attention.q_proj(tokens + point_embedding)
        return self.norm_final_attn(tokens + _attend(attention, queries, keys, values)), pixels


def _two_way(
    block: TwoWayAttentionBlock, tokens: Tensor, pixels: Tensor, token_pe: Tensor, pixel_pe: Tensor
) -> tuple[Tensor, Tensor]:
    """The parent's block: tokens to tokens, tokens to pixels, each token by itself, pixels to tokens."""
    attention = block.self_attn
    if block.skip_first_layer_pe:
        tokens = attention(tokens, tokens, tokens)
    else:
        placed = tokens + token_pe
        tokens = tokens + attention(placed, placed, tokens)
    tokens = block.norm1(tokens)

    attention, pixel_attention = block.cross_attn_token_to_image, block.cross_attn_image_to_token
    keys, values, pixel_queries = _project_pixels(pixels, pixel_pe, attention, pixel_attention)
    queries = attention.q_proj(tokens + token_pe)
    tokens = block.norm2(tokens + _attend(attention, queries, keys, values))
    tokens = block.norm3(tokens + block.mlp(tokens))

    token_keys, token_values = pixel_attention.k_proj(tokens + token_pe), pixel_attention.v_proj(tokens)
    return tokens, block.norm4(pixels + _attend(pixel_attention, pixel_queries, token_keys, token_values))


def _project_pixels(
    pixels: Tensor, pixel_pe: Tensor, asked: Attention, asking: Attention | None = None
) -> tuple[Tensor, ...]:
    """Keys and values of (N, h * w, C) pixels for one attention, and their queries for another, in one product."""
    placed = [asked.k_proj] if asking is None else [asked.k_proj, asking.q_proj]
    projections = [asked.v_proj, *placed]
    weight = torch.cat([projection.weight for projection in projections])
    bias = torch.cat([projection.bias for projection in projections])
    values, *others = F.linear(pixels, weight, bias).split([p.out_features for p in projections], dim=2)
    keys, *queries = (
        other + F.linear(pixel_pe, projection.weight) for other, projection in zip(others, placed, strict=True)
    )
    return keys, values, *queries


def _attend(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The parent's attention from its projections on."""
    q, k, v = (x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    # of no mask, PyTorch 2.6 to 2.9 crash on CUDA; sums of nothing keep keys and values part of the graph
    attended = F.scaled_dot_product_attention(q, k, v) if len(q) else q + k.sum() + v.sum()
    output: Tensor = attention.out_proj(attended.transpose(1, 2).flatten(2))
    return output
