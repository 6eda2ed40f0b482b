"""Cityscapes' own instance AP, by its publisher's scripts behind Detectron2's evaluator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import CityscapesInstanceEvaluator
from detectron2.structures import Instances

from phoenix_d2.data.datasets.cityscapes import CLASSES
from phoenix_d2.data.mask_json import Record, decode_segmentation, image_sizes


def evaluate_cityscapes(annotations: Record, results: Sequence[Record], *, gt_dir: str | Path) -> dict[str, float]:
    """Score a results file as Cityscapes' benchmark does.

    Unlike COCO's, its AP ignores objects of less than 100 pixels and what lies on void or on a group, and knows no
    limit to the masks of an image.

    Args:
        annotations: what `cityscapes_annotations` made of the split.
        results: COCO-style records of all its images, with Cityscapes' label ids, checked.
        gt_dir: `gtFine/SPLIT`.

    Returns:
        {"AP": ..., "AP50": ...}, percentages.

    Raises:
        ValueError: cityscapesscripts, which does the scoring, is not installed.
    """
    if find_spec("cityscapesscripts") is None:
        raise ValueError("Cityscapes' own AP is computed by its publisher's scripts: pip install cityscapesscripts.")
    MetadataCatalog.get(str(gt_dir)).set(gt_dir=str(gt_dir), thing_classes=list(CLASSES.values()))
    evaluator = CityscapesInstanceEvaluator(str(gt_dir))
    evaluator.reset()
    by_image = defaultdict(list)
    for record in results:
        by_image[record["image_id"]].append(record)
    sizes, order = image_sizes(annotations), list(CLASSES)
    for image in annotations["images"]:
        instances = _instances(by_image[image["id"]], sizes[image["id"]], order)
        evaluator.process([{"file_name": image["file_name"]}], [{"instances": instances}])
    with _working_scripts():
        scores: dict[str, float] = evaluator.evaluate()["segm"]
    return {metric: float(value) for metric, value in scores.items()}


@contextmanager
def _working_scripts() -> Iterator[None]:
    """The publisher's scripts with today's NumPy, silent, and without the files that they leave behind."""
    scripts = import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    with (
        # gone since NumPy 2.4
        patch.object(np, "in1d", np.isin, create=True),
        # fails on NumPy's integers, and one of its files goes to the current folder
        patch.object(scripts, "writeDict2JSON"),
        patch.object(scripts.args, "quiet", True),
    ):
        yield


def _instances(records: Sequence[Record], size: tuple[int, int], order: Sequence[int]) -> Instances:
    instances = Instances(size)
    masks = [torch.from_numpy(decode_segmentation(record["segmentation"], *size)) for record in records]
    instances.pred_masks = torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool)
    instances.scores = torch.tensor([record["score"] for record in records])
    instances.pred_classes = torch.tensor([order.index(record["category_id"]) for record in records], dtype=torch.long)
    return instances
