"""segment-anything's mask decoder, giving also what it hides."""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from torch import Tensor

from phoenix_d2.structures import MaskPrediction


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
        num_masks = sparse_embeddings.shape[0]
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(num_masks, -1, -1), sparse_embeddings], dim=1)

        embeddings = image_embeddings + dense_embeddings
        hidden, embeddings_out = self.transformer(embeddings, image_pe.expand_as(embeddings), tokens)
        mask_tokens = hidden[:, 1 : 1 + self.num_mask_tokens]

        features = self.output_upscaling(embeddings_out.transpose(1, 2).reshape(embeddings.shape))
        weights = torch.stack(
            [mlp(token) for mlp, token in zip(self.output_hypernetworks_mlps, mask_tokens.unbind(1), strict=True)],
            dim=1,
        )
        logits = (weights @ features.flatten(2)).unflatten(2, features.shape[-2:])
        return MaskPrediction(logits, self.iou_prediction_head(hidden[:, 0]), features)
