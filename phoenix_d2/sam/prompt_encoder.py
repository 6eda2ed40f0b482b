"""segment-anything's prompt encoder, reading `Prompts`."""

from __future__ import annotations

import torch
from segment_anything.modeling import PromptEncoder as SamPromptEncoder
from torch import Tensor

from phoenix_d2.structures import PointLabel, Prompts


class PromptEncoder(SamPromptEncoder):
    """`segment_anything`'s PromptEncoder with one batch of labelled points for points, boxes and padding alike.

    Parameters and results are those of the parent class; what changes is that a label is looked up
    instead of written through boolean indexing, so that prompts can be dropped mask by mask and
    nothing waits for the device.
    """

    def encode(self, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Embed the prompts of N masks.

        Returns:
            (N, P, C) sparse embeddings and (N, C, h, w) dense embeddings; the dense one is the learnt
            "no mask" embedding where `prompts.mask_logits` is None.
        """
        sparse = self._embed_labelled_points(prompts.point_coords, prompts.point_labels)
        if prompts.mask_logits is None:
            return sparse, self.no_mask_embeddings(len(prompts))
        return sparse, self._embed_masks(prompts.mask_logits)

    def no_mask_embeddings(self, num_masks: int) -> Tensor:
        """(num_masks, C, h, w) dense embedding of an absent mask prompt, a view that is never copied."""
        height, width = self.image_embedding_size
        return self.no_mask_embed.weight[:, :, None, None].expand(num_masks, -1, height, width)

    def without_mask(self, dense_embeddings: Tensor) -> Tensor:
        """Dense embeddings of mask prompts, less whatever of the masks is handed on unembedded: here, nothing."""
        return dense_embeddings

    def get_dense_pe(self) -> Tensor:
        """(1, C, h, w) positional encoding of the image embedding, in float32 also under autocast."""
        with torch.autocast(self.no_mask_embed.weight.device.type, enabled=False):
            return super().get_dense_pe()

    def _embed_labelled_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        # half precision would place points to a whole pixel only
        with torch.autocast(coords.device.type, enabled=False):
            position = self.pe_layer.forward_with_coords(coords + 0.5, self.input_image_size)
        is_point = (labels != PointLabel.PADDING)[..., None]
        by_label = torch.cat([self.not_a_point_embed.weight, *self.point_embeddings.parameters()])
        return position * is_point + by_label[labels - PointLabel.PADDING]
