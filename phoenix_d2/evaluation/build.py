"""The evaluator of a dataset: mask AP and boundary AP, of the coarse masks and of the refined ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from phoenix_d2.evaluation.binary_evaluator import BinaryMaskEvaluator
from phoenix_d2.evaluation.evaluators import BoundaryCOCOEvaluator, BoundaryLVISEvaluator

_EVALUATORS = {"coco": BoundaryCOCOEvaluator, "lvis": BoundaryLVISEvaluator, "binary_masks": BinaryMaskEvaluator}


class BeforeAfterEvaluator(DatasetEvaluator):
    """Evaluates the coarse masks that a sample brought, and the model's output for it.

    The scores of the coarse masks carry the prefix "coarse_".

    Args:
        before: for the "coarse_instances" of the inputs.
        after: for the "instances" of the outputs.
    """

    def __init__(self, before: DatasetEvaluator, after: DatasetEvaluator) -> None:
        self.before = before
        self.after = after

    def reset(self) -> None:
        """Forget everything taken in."""
        self.before.reset()
        self.after.reset()

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take in one batch."""
        self.before.process(inputs, [{"instances": sample["coarse_instances"]} for sample in inputs])
        self.after.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any] | None:
        """Scores of both, on the main process; None on the others."""
        before, after = self.before.evaluate(), self.after.evaluate()
        if not before or not after:
            return None
        return {f"coarse_{task}": scores for task, scores in before.items()} | after


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """`BeforeAfterEvaluator` in the protocol of the dataset's `evaluator_type`.

    Raises:
        ValueError: the dataset has a protocol that is none of `_EVALUATORS`.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if kind not in _EVALUATORS:
        raise ValueError(
            f"Dataset {dataset_name!r} has the evaluator_type {kind!r}: expected one of {list(_EVALUATORS)}."
        )
    folder = Path(cfg.OUTPUT_DIR, "inference")
    if len(cfg.DATASETS.TEST) > 1:
        folder /= dataset_name.strip("/").replace("/", "_")
    before, after = (
        _EVALUATORS[kind](dataset_name, tasks=("segm",), output_dir=str(folder / name))
        for name in ("coarse", "refined")
    )
    return BeforeAfterEvaluator(before, after)
