"""The evaluator of data sets with one binary mask an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from phoenix_d2.data.mask_json import decode_segmentation
from phoenix_d2.evaluation.binary_masks import MaskScore, score_mask, summarise


class BinaryMaskEvaluator(DatasetEvaluator):
    """IoU, pooled IoU, boundary F, mBA and Dice of what all masks of an image cover together: {"masks": ...}.

    Args:
        dataset_name: a registered dataset of one annotation an image, or none.
        tasks, output_dir: taken as by Detectron2's evaluators, and not needed.
    """

    def __init__(self, dataset_name: str, tasks: Sequence[str] | None = None, output_dir: str | None = None) -> None:
        self._targets = {sample["image_id"]: sample for sample in DatasetCatalog.get(dataset_name)}
        self._scores: dict[Any, MaskScore] = {}

    def reset(self) -> None:
        """Forget everything taken in."""
        self._scores = {}

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Take in one batch; arguments as Detectron2's evaluators."""
        for sample, output in zip(inputs, outputs, strict=True):
            mask = output["instances"].pred_masks.any(dim=0).cpu().numpy()
            target = np.zeros_like(mask)
            for annotation in self._targets[sample["image_id"]]["annotations"]:
                target |= decode_segmentation(annotation["segmentation"], *mask.shape)
            self._scores[sample["image_id"]] = score_mask(mask, target)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Percentages on the main process; None on the others."""
        shares = comm.gather(self._scores)
        if not comm.is_main_process():
            return None
        # a sampler may give an image to two processes, to make their shares equal
        scores = {image_id: score for share in shares for image_id, score in share.items()}
        return {"masks": summarise(list(scores.values()))}
