"""Coarse masks made of right ones."""

from __future__ import annotations

import numpy as np
import pytest

from phoenix_d2.data.degrade import degrade_annotations
from phoenix_d2.data.mask_json import check_results, decode_segmentation, encode_mask


@pytest.fixture
def annotations() -> dict:
    disk = np.hypot(*(np.indices((80, 100)) - np.array([40, 50])[:, None, None])) < 25
    records = [
        {"id": 7, "image_id": 1, "category_id": 3, "segmentation": encode_mask(disk), "iscrowd": 0},
        {"id": 8, "image_id": 1, "category_id": 3, "segmentation": encode_mask(~disk), "iscrowd": 1},
        {"id": 9, "image_id": 1, "category_id": 4, "segmentation": [[10, 10, 60, 10, 60, 60, 10, 60]]},
    ]
    images = [{"id": 1, "height": 80, "width": 100, "file_name": "1.jpg"}]
    return {"images": images, "annotations": records, "categories": [{"id": 3}, {"id": 4}]}


@pytest.mark.parametrize("kind", ["mask_head", "polygon", "morphological"])
def test_results_pair_with_their_annotations(annotations: dict, kind: str) -> None:
    results = degrade_annotations(annotations, kind=kind, strength=0.8)
    check_results(results, source="test", annotations=annotations, check_categories=True)
    assert [(r["gt_id"], r["category_id"], r["score"]) for r in results] == [(7, 3, 1.0), (9, 4, 1.0)]
    for result, annotation in zip(results, (annotations["annotations"][i] for i in (0, 2)), strict=True):
        mask, target = (decode_segmentation(r["segmentation"], 80, 100) for r in (result, annotation))
        assert 0.4 < (mask & target).sum() / (mask | target).sum() <= 1


def test_stronger_is_worse(annotations: dict) -> None:
    target = decode_segmentation(annotations["annotations"][0]["segmentation"], 80, 100)
    ious = []
    for strength in (0.0, 1.0):
        first = degrade_annotations(annotations, kind="morphological", strength=strength)[0]
        mask = decode_segmentation(first["segmentation"], 80, 100)
        ious.append((mask & target).sum() / (mask | target).sum())
    assert ious[0] > 0.85 > 0.65 > ious[1]


def test_noise_depends_on_seed_and_annotation_alone(annotations: dict) -> None:
    degraded = degrade_annotations(annotations, kind="morphological", strength=0.5, seed=1)
    fewer = {**annotations, "annotations": annotations["annotations"][2:]}
    assert degrade_annotations(fewer, kind="morphological", strength=0.5, seed=1) == degraded[1:]
    assert degrade_annotations(annotations, kind="morphological", strength=0.5, seed=2) != degraded


def test_errors(annotations: dict) -> None:
    with pytest.raises(ValueError, match=r"'blur'.*mask_head, morphological, polygon"):
        degrade_annotations(annotations, kind="blur", strength=0.5)
    with pytest.raises(ValueError, match=r"1\.5.*0 to 1"):
        degrade_annotations(annotations, kind="polygon", strength=1.5)
