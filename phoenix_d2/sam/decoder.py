"""segment-anything's mask decoder, giving also what it hides."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from torch import Tensor, nn

from phoenix_d2.structures import MaskPrediction

EMBED_DIM = 256
"""Channels of embeddings, in all of segment-anything's models."""


class MaskDecoder(SamMaskDecoder):
    """`segment_anything`'s MaskDecoder for masks of different images in one batch.

    Same parameters and mathematics as the parent class. Two differences: image embeddings come one a
    mask (or one for all, expanded without a copy), where the parent repeats those of a single image;
    and the upscaled image embedding, which CMRL needs (paper B.1), is returned too.
    """

    def decode(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_embeddings: Tensor,
        dense_embeddings: Tensor,
    ) -> MaskPrediction:
        """Predict all mask candidates: first the single-mask token's, then the multimask tokens'.

        Args:
            image_embeddings: (N, C, h, w), or (1, C, h, w) when all masks lie in one image.
            image_pe: (1, C, h, w) positional encoding of the image embedding.
            sparse_embeddings: (N, P, C).
            dense_embeddings: (N, C, h, w).
        """
        return self.decode_tokens(image_embeddings, image_pe, sparse_embeddings, dense_embeddings)[1]

    def decode_tokens(
        self, image_embeddings: Tensor, image_pe: Tensor, sparse_embeddings: Tensor, dense_embeddings: Tensor
    ) -> tuple[Tensor, MaskPrediction]:
        """`decode`, with the tokens behind it: (N, T, C), in the order of `output_tokens`."""
        num_masks = sparse_embeddings.shape[0]
        output_tokens = self.output_tokens()
        tokens = torch.cat([output_tokens.expand(num_masks, -1, -1), sparse_embeddings], dim=1)

        embeddings = image_embeddings + dense_embeddings
        hidden, embeddings_out = self.transformer(embeddings, image_pe.expand_as(embeddings), tokens)
        output_hidden = hidden[:, : len(output_tokens)]
        iou_hidden, *mask_hidden = output_hidden[:, : 1 + self.num_mask_tokens].unbind(1)

        features = upscale_pixels(self.output_upscaling, embeddings_out, embeddings.shape[-2:])
        weights = torch.stack(
            [mlp(token) for mlp, token in zip(self.output_hypernetworks_mlps, mask_hidden, strict=True)], dim=1
        )
        logits = (weights @ features.flatten(2)).unflatten(2, features.shape[-2:])
        return output_hidden, MaskPrediction(logits, self.iou_prediction_head(iou_hidden), features)

    def output_tokens(self) -> Tensor:
        """(T, C) learnt tokens that answers are read from: the IoU token, then one for each candidate."""
        return torch.cat([self.iou_token.weight, self.mask_tokens.weight])


def upscale_pixels(upscaling: nn.Sequential, pixels: Tensor, size: torch.Size) -> Tensor:
    """Apply a module like `MaskDecoder.output_upscaling` as matrix products: (N, h * w, C) -> (N, D, 4 h, 4 w).

    A transposed convolution whose kernel is as wide as its stride sees one pixel at a time. Written as a
    product over channels-last pixels, it trains several times faster on a CPU; and so do the channels-last maps that
    come back, since moving whole pixels is one copy of long runs.

    Args:
        upscaling: two such convolutions of stride 2 with norm and activation between, and what may follow them.
        pixels: (N, h * w, C).
        size: (h, w).
    """
    parts: Any = upscaling
    first, norm, activation, second, *last = parts
    x: Tensor = F.layer_norm(_split_pixels(pixels, first), norm.weight.shape, norm.weight, norm.bias, norm.eps)
    x = _split_pixels(activation(x), second)
    for module in last:
        x = module(x)
    # every pixel became 2 x 2, and each of these 2 x 2 again
    height, width = size
    x = x.unflatten(1, (height, width)).unflatten(3, (2, 2)).unflatten(5, (2, 2))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(len(x), 4 * height, 4 * width, x.shape[-1]).movedim(-1, 1)


def _split_pixels(x: Tensor, convolution: nn.ConvTranspose2d) -> Tensor:
    """Apply a 2 x 2 transposed convolution of stride 2 to (..., C) pixels: (..., 4, D), the 2 x 2 row by row."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
    assert convolution.bias is not None
    split: Tensor = F.linear(x, weight, convolution.bias.repeat(4)).unflatten(-1, (4, -1))
    return split
