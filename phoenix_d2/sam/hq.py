"""HQ-SAM's mask decoder (Ke et al. 2023): segment-anything's, and a token that corrects its outlines.

The token reads a map of stride 4 into which early features of the encoder went, where detail is not lost yet. They
come as channels of the image embedding: `EMBED_DIM` of the embedding itself, then those of the features.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from phoenix_d2.sam.decoder import EMBED_DIM, MaskDecoder, upscale_pixels
from phoenix_d2.structures import MaskPrediction


class HQMaskDecoder(MaskDecoder):
    """A `MaskDecoder` whose every candidate is corrected by what HQ-SAM's token says.

    Parameters are named as in the official checkpoints. Choosing the candidate of the highest predicted IoU, as
    HQ-SAM does, gives its mask.

    Args:
        early_channels: channels of the encoder's early features.
        arguments: those of `MaskDecoder`.
    """

    def __init__(self, *, early_channels: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        dim = self.transformer_dim
        self.hf_token = nn.Embedding(1, dim)
        self.hf_mlp = MLP(dim, dim, dim // 8, 3)
        self.compress_vit_feat = _upscaling(early_channels, dim, dim // 8)
        self.embedding_encoder = _upscaling(dim, dim // 4, dim // 8)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(dim // 8, dim // 4, 3, padding=1),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.Conv2d(dim // 4, dim // 8, 3, padding=1),
        )

    def output_tokens(self) -> Tensor:
        """As `MaskDecoder.output_tokens`, HQ-SAM's last."""
        return torch.cat([super().output_tokens(), self.hf_token.weight])

    def decode(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_embeddings: Tensor,
        dense_embeddings: Tensor,
    ) -> MaskPrediction:
        """As `MaskDecoder.decode`, from image embeddings with early features behind them.

        The features that come back are those that the correction is read from.
        """
        embeddings, early = image_embeddings.split([EMBED_DIM, image_embeddings.shape[1] - EMBED_DIM], dim=1)
        hidden, uncorrected = self.decode_tokens(embeddings, image_pe, sparse_embeddings, dense_embeddings)
        fine = _upscale(self.embedding_encoder, embeddings) + _upscale(self.compress_vit_feat, early)
        features = self.embedding_maskfeature(uncorrected.features) + fine
        correction = self.hf_mlp(hidden[:, -1])[:, None] @ features.flatten(2)
        logits = uncorrected.low_res_logits + correction.unflatten(2, features.shape[-2:])
        return replace(uncorrected, low_res_logits=logits, features=features)


def _upscaling(in_channels: int, channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, channels, 2, stride=2),
        LayerNorm2d(channels),
        nn.GELU(),
        nn.ConvTranspose2d(channels, out_channels, 2, stride=2),
    )


def _upscale(upscaling: nn.Sequential, maps: Tensor) -> Tensor:
    return upscale_pixels(upscaling, maps.flatten(2).transpose(1, 2), maps.shape[-2:])
