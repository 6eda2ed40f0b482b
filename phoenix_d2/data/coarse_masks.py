"""Coarse masks beside the images that they belong to."""

from __future__ import annotations

import logging
import zlib
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.structures import Instances

from phoenix_d2.data.images import read_image
from phoenix_d2.data.mask_json import decode_segmentation, load_results
from phoenix_d2.perturbation import get_degradation

logger = logging.getLogger(__name__)


def attach_results(dataset_dicts: list[dict[str, Any]], path: str) -> list[dict[str, Any]]:
    """Put the records of a results JSON under "coarse_results" of the dicts of their images, in the file's order.

    Raises:
        ValueError: the file names an image that the dataset lacks, or is no results file.
    """
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in load_results(path):
        by_image[record["image_id"]].append(record)
    unknown = sorted(by_image.keys() - {d["image_id"] for d in dataset_dicts}, key=str)
    if unknown:
        raise ValueError(
            f"{path} has masks of {len(unknown)} image(s) that the dataset lacks, the first is {unknown[0]!r}: "
            "is it the results file of another dataset?"
        )
    return [{**d, "coarse_results": by_image.get(d["image_id"], [])} for d in dataset_dicts]


def attach_training_noise(dataset_dicts: list[dict[str, Any]], path: str) -> list[dict[str, Any]]:
    """Put a model's mask of an annotation under its "coarse_segmentation" (paper Table 4e).

    The record's `gt_id` tells the annotation.

    Raises:
        ValueError: a record has no `gt_id`, or one of another image's annotation, or none of them is an annotation of
            the dataset.
    """
    by_annotation: dict[int, dict[str, Any]] = {}
    for index, record in enumerate(load_results(path)):
        if "gt_id" not in record:
            raise ValueError(
                f"{path}, record {index}: training noise needs 'gt_id', the id of the annotation that the mask is a "
                "prediction of."
            )
        by_annotation[record["gt_id"]] = record
    with_noise = []
    for dataset_dict in dataset_dicts:
        annotations = []
        for annotation in dataset_dict["annotations"]:
            noise = by_annotation.get(annotation.get("id"))
            if noise is not None and noise["image_id"] != dataset_dict["image_id"]:
                raise ValueError(
                    f"{path}: 'gt_id' {noise['gt_id']} belongs to image {dataset_dict['image_id']}, its mask to image "
                    f"{noise['image_id']}. Is it the results file of another dataset?"
                )
            annotations.append(annotation | ({"coarse_segmentation": noise["segmentation"]} if noise else {}))
        with_noise.append({**dataset_dict, "annotations": annotations})
    count = sum("coarse_segmentation" in a for d in with_noise for a in d["annotations"])
    if not count:
        raise ValueError(
            f"{path}: no 'gt_id' is the id of an annotation of the dataset. Is it the results file of another dataset? "
            "Annotations keep their ids only in datasets registered by phoenix_d2.data.datasets."
        )
    logger.info("%d masks of %s serve as training noise.", count, path)
    return with_noise


class CoarseMaskMapper:
    """Test samples: the whole image and its coarse masks.

    Args:
        dataset_name: whose category ids are mapped to contiguous ones, as Detectron2 maps those of its annotations.
        degradation: (kind, strength) in `phoenix_d2.perturbation.DEGRADATIONS` that makes coarse masks of the
            ground truth where the dict has no "coarse_results"; seeded by the image's id.

    Raises:
        ValueError: the kind is unknown, or the strength out of range; of a sample, a category is none of the dataset's.
    """

    def __init__(self, dataset_name: str, degradation: tuple[str, float]) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.category_ids = metadata.get("thing_dataset_id_to_contiguous_id", None)
        # LVIS' ids are contiguous, but begin with 1
        self.first_category_id = 1 if metadata.get("evaluator_type", None) == "lvis" else 0
        kind, strength = degradation
        self.degrade = get_degradation(kind, strength=strength)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dict.

        Returns:
            The dict without annotations, with "image", (3, H, W) uint8 RGB, and "coarse_instances" in the image
            frame with `pred_masks` (N, H, W) bool, `scores` and contiguous `pred_classes`.
        """
        image = read_image(dataset_dict["file_name"])
        utils.check_image_size(dataset_dict, image)
        size = image.shape[:2]
        if "coarse_results" in dataset_dict:
            records = dataset_dict["coarse_results"]
            masks = [decode_segmentation(r["segmentation"], *size) for r in records]
            scores = [r.get("score", 1.0) for r in records]
            classes = [self._contiguous(r["category_id"]) for r in records]
        else:
            annotations = [a for a in dataset_dict["annotations"] if not a.get("iscrowd", 0)]
            rng = np.random.default_rng(zlib.crc32(str(dataset_dict["image_id"]).encode()))
            masks = [self.degrade(decode_segmentation(a["segmentation"], *size), rng) for a in annotations]
            scores = [1.0] * len(annotations)
            classes = [a["category_id"] for a in annotations]

        coarse = Instances(size)
        coarse.pred_masks = torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), dtype=bool))
        coarse.scores = torch.tensor(scores, dtype=torch.float32)
        coarse.pred_classes = torch.tensor(classes, dtype=torch.long)
        hidden = ("annotations", "coarse_results")
        sample = {key: value for key, value in dataset_dict.items() if key not in hidden}
        sample["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        sample["coarse_instances"] = coarse
        return sample

    def _contiguous(self, category_id: int) -> int:
        if self.category_ids is None:
            return category_id - self.first_category_id
        if category_id not in self.category_ids:
            raise ValueError(
                f"Coarse masks of {self.dataset_name!r} have the category {category_id}, which is none of the "
                "dataset's. Is it the results file of another dataset?"
            )
        contiguous: int = self.category_ids[category_id]
        return contiguous
