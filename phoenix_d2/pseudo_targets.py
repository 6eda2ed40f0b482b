"""Target masks without annotations: a promptable decoder's answers to a grid of points (paper A.1, B.4)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from phoenix_d2.ops.frames import Frame
from phoenix_d2.prompting import to_sam_coords
from phoenix_d2.refiner import MaskRefiner
from phoenix_d2.structures import PointLabel, Prompts

# low-resolution pixels that a target and its background must have at least: less is nothing to learn an outline from
_MIN_AREA = 16


class PointGridTeacher(nn.Module):
    """Segment-anything's automatic mask generation, shortened: one grid of points, and its confident answers.

    Prompt encoder and decoder are copies of the refiner's, made at once and never trained: a decoder that made its
    own targets would drift with them. The image encoder is shared, so it must stay as it is.

    Args:
        refiner: whose decoder answers, as it is now.
        grid_size: points a side; they halve the cells that they are in.
        min_iou: least predicted IoU of a confident answer; segment-anything's own value, as the paper names none.
        num_targets: most targets an image; the paper draws one.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self, refiner: MaskRefiner, *, grid_size: int = 4, min_iou: float = 0.88, num_targets: int = 1
    ) -> None:
        super().__init__()
        if grid_size < 1 or num_targets < 1:
            raise ValueError(f"grid_size is {grid_size} and num_targets {num_targets}: expected at least 1 each.")
        if not 0 <= min_iou <= 1:
            raise ValueError(f"min_iou is {min_iou}: expected an IoU from 0 to 1.")
        self.prompt_encoder = copy.deepcopy(refiner.prompt_encoder).requires_grad_(False)
        self.mask_decoder = copy.deepcopy(refiner.mask_decoder).requires_grad_(False)
        self.grid_size = grid_size
        self.min_iou = min_iou
        self.num_targets = num_targets

    @torch.no_grad()
    def forward(self, image_embedding: Tensor, frame: Frame, *, generator: torch.Generator) -> Tensor:
        """Draw targets of one image among the confident answers, each as likely as another.

        Args:
            image_embedding: (1, C, h, w).
            frame: of the image that was embedded.
            generator: of the draw.

        Returns:
            (N, s, s) bool, N at most `num_targets`, and 0 where no answer is confident.
        """
        masks, iou_predictions = self.answers(image_embedding, frame)
        valid = frame.valid_mask(masks.device)
        areas = masks.flatten(1).sum(1)
        has_outline = (areas >= _MIN_AREA) & (valid.sum() - areas >= _MIN_AREA)
        confident = (has_outline & (iou_predictions >= self.min_iou)).nonzero()[:, 0]
        drawn = torch.randperm(len(confident), generator=generator)[: self.num_targets]
        return masks[confident[drawn.to(confident.device)]]

    def answers(self, image_embedding: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        """All answers to the grid's P points, three a point: (3 P, s, s) bool masks and their predicted IoU."""
        points = self._grid(frame).to(image_embedding.device)
        labels = torch.tensor([PointLabel.FOREGROUND, PointLabel.PADDING], device=points.device)
        coords = torch.stack([to_sam_coords(points), torch.zeros_like(points)], dim=1)
        sparse, dense = self.prompt_encoder.encode(Prompts(coords, labels.expand(len(points), 2)))
        image_pe = self.prompt_encoder.get_dense_pe()
        prediction = self.mask_decoder.decode(image_embedding, image_pe, sparse, dense).float().multimask()
        masks = (prediction.low_res_logits > 0) & frame.valid_mask(points.device)
        return masks.flatten(0, 1), prediction.iou_predictions.flatten()

    def _grid(self, frame: Frame) -> Tensor:
        """(P, 2) continuous (x, y) in the model input."""
        height, width = frame.resized_size
        centres = (torch.arange(self.grid_size) + 0.5) / self.grid_size
        return torch.cartesian_prod(centres * width, centres * height)
