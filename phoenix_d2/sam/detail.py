"""Prompt encoder and decoder with an output of stride 2, for encoders that offer fine maps.

segment-anything writes masks at a quarter of the input's resolution, from an embedding at a sixteenth.
Here a last stage doubles that. It sees what an outline needs: maps of the image at half resolution
(as SAM 2 and HQ-SAM hand them to their decoders) and the mask prompt itself, whose logits it can also
pass on unchanged, so that a mask that is right need not be drawn again.

Both travel folded into the channels of what segment-anything passes around anyway: every (8, 8) block
of a map of stride 2 becomes 64 channels at stride 16. An image embedding is `EMBED_DIM` channels and
`DETAIL_CHANNELS` * 64 after them, a dense prompt embedding `EMBED_DIM` and 64.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from phoenix_d2.sam.decoder import EMBED_DIM, MaskDecoder
from phoenix_d2.sam.prompt_encoder import PromptEncoder
from phoenix_d2.structures import MaskPrediction, Prompts

DETAIL_CHANNELS = 16
# low-resolution pixels a side of an embedding's pixel
FOLD = 8

# mask prompts come as logits of some ten for a certain pixel; beyond this they differ little
_PROMPT_SCALE = 5.0


class DetailPromptEncoder(PromptEncoder):
    """A `PromptEncoder` for mask prompts of stride 2, which it also hands on as they are."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        height, width = self.image_embedding_size
        self.mask_input_size = (FOLD * height, FOLD * width)

    def encode(self, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """As `PromptEncoder.encode`, the dense embedding with 64 channels more: the prompt itself, folded."""
        if prompts.mask_logits is None:
            return super().encode(prompts)
        halved = F.avg_pool2d(prompts.mask_logits, 2)
        sparse, dense = super().encode(Prompts(prompts.point_coords, prompts.point_labels, halved))
        folded = F.pixel_unshuffle(torch.tanh(prompts.mask_logits / _PROMPT_SCALE), FOLD)
        return sparse, torch.cat([dense, folded.to(dense.dtype)], dim=1)

    def no_mask_embeddings(self, num_masks: int) -> Tensor:
        """As `PromptEncoder.no_mask_embeddings`; of an absent prompt every pixel is undecided, 0."""
        return F.pad(super().no_mask_embeddings(num_masks), (0, 0, 0, 0, 0, FOLD**2))

    def without_mask(self, dense_embeddings: Tensor) -> Tensor:
        """As `PromptEncoder.without_mask`; of the folded prompt every pixel becomes undecided, 0."""
        return F.pad(dense_embeddings[:, :EMBED_DIM], (0, 0, 0, 0, 0, FOLD**2))


class DetailMaskDecoder(MaskDecoder):
    """A `MaskDecoder` with a stage of stride 2 behind it, and an estimate of the mask prompt's own IoU.

    Args:
        arguments: those of `MaskDecoder`.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        dim = self.transformer_dim
        channels = dim // 8
        # 2 x 2 pixels out of one
        self.detail_upscaling = nn.Linear(channels, 4 * channels)
        self.detail_input = nn.Conv2d(DETAIL_CHANNELS + 1, channels, 3, padding=1)
        self.detail_mixing = nn.Conv2d(channels, channels, 3, padding=1)
        # the last weight is that of the prompt itself
        self.detail_hypernetwork = MLP(dim, dim, channels + 1, 3)
        self.prompt_iou_head = MLP(dim, dim, 1, 3)
        # at first, what the coarser stage says
        for parameter in self.detail_hypernetwork.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def decode(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_embeddings: Tensor,
        dense_embeddings: Tensor,
    ) -> MaskPrediction:
        """As `MaskDecoder.decode`, at stride 2, from embeddings with folded maps behind them."""
        dense, folded_prompt = dense_embeddings.split([EMBED_DIM, FOLD**2], dim=1)
        coarse_embeddings, folded_details = image_embeddings.split([EMBED_DIM, DETAIL_CHANNELS * FOLD**2], dim=1)
        hidden, coarse = self.decode_tokens(coarse_embeddings, image_pe, sparse_embeddings, dense)

        prompt = F.pixel_shuffle(folded_prompt, FOLD)
        details = F.pixel_shuffle(folded_details, FOLD).expand(len(prompt), -1, -1, -1)
        features = self._detail_features(coarse.features, details, prompt)
        weights = self.detail_hypernetwork(hidden[:, 1:])
        maps = torch.cat([features, prompt.to(features.dtype)], dim=1)
        residual = (weights @ maps.flatten(2)).unflatten(2, maps.shape[-2:])
        logits = F.interpolate(coarse.low_res_logits, scale_factor=2.0, mode="bilinear", align_corners=False)
        prompt_iou = self.prompt_iou_head(hidden[:, 0])[:, 0]
        return MaskPrediction(logits + residual, coarse.iou_predictions, features, prompt_iou)

    def _detail_features(self, features: Tensor, details: Tensor, prompt: Tensor) -> Tensor:
        """(N, 32, 4 h, 4 w), (N, D, 8 h, 8 w), (N, 1, 8 h, 8 w) -> (N, 32, 8 h, 8 w)."""
        split = self.detail_upscaling(features.movedim(1, -1)).unflatten(-1, (2, 2, -1))
        # (N, h, w, 2, 2, C) -> (N, C, h, 2, w, 2)
        upscaled = split.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        x = F.gelu(upscaled + self.detail_input(torch.cat([details, prompt.to(details.dtype)], dim=1)))
        mixed: Tensor = F.gelu(x + self.detail_mixing(x))
        return mixed
