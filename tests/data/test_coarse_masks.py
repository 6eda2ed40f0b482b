"""Coarse masks beside their images: from files, from degraded ground truth, as training noise."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

from phoenix_d2.data.coarse_masks import CoarseMaskMapper, attach_results, attach_training_noise
from phoenix_d2.data.mask_json import encode_mask

DATASET = "test_coarse_masks"


def square(x0, side=20):
    mask = np.zeros((48, 64), dtype=bool)
    mask[10 : 10 + side, x0 : x0 + side] = True
    return mask


@pytest.fixture(autouse=True)
def metadata():
    MetadataCatalog.get(DATASET).thing_dataset_id_to_contiguous_id = {7: 0, 9: 1}
    yield
    MetadataCatalog.remove(DATASET)


@pytest.fixture
def write(tmp_path):
    def write_json(records):
        path = tmp_path / "results.json"
        path.write_text(json.dumps(records))
        return str(path)

    return write_json


@pytest.fixture
def image_dict(tmp_path):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.full((48, 64, 3), (10, 20, 30), dtype=np.uint8))
    annotations = [
        {"id": 5, "segmentation": encode_mask(square(4)), "category_id": 1, "bbox": [4, 10, 20, 20], "iscrowd": 0},
        {"id": 6, "segmentation": encode_mask(square(30)), "category_id": 0, "bbox": [30, 10, 20, 20], "iscrowd": 1},
    ]
    return {"file_name": str(path), "image_id": 3, "height": 48, "width": 64, "annotations": annotations}


def record(image_id, x0, **fields):
    return {"image_id": image_id, "category_id": 9, "segmentation": encode_mask(square(x0)), "score": 0.5, **fields}


def test_results_go_to_their_images_in_the_order_of_the_file(write):
    path = write([record(2, 8), record(1, 4), record(2, 2)])
    dicts = attach_results([{"image_id": 1}, {"image_id": 2}, {"image_id": 3}], path)
    assert [len(d["coarse_results"]) for d in dicts] == [1, 2, 0]
    assert [r["segmentation"] for r in dicts[1]["coarse_results"]] == [encode_mask(square(8)), encode_mask(square(2))]


def test_results_of_another_dataset(write):
    path = write([record(1, 4), record(77, 4), record(78, 4)])
    with pytest.raises(ValueError, match=r"results\.json.*2 image.*77"):
        attach_results([{"image_id": 1}], path)


def test_training_noise_is_found_by_the_annotation_id(write, image_dict):
    (with_noise,) = attach_training_noise([image_dict], write([record(3, 6, gt_id=5)]))
    first, second = with_noise["annotations"]
    assert first["coarse_segmentation"] == encode_mask(square(6))
    assert "coarse_segmentation" not in second
    assert "coarse_segmentation" not in image_dict["annotations"][0]


def test_training_noise_without_annotation_ids(write, image_dict):
    with pytest.raises(ValueError, match=r"record 1: .*gt_id"):
        attach_training_noise([image_dict], write([record(3, 6, gt_id=5), record(3, 6)]))


def test_training_noise_of_another_dataset(write, image_dict):
    with pytest.raises(ValueError, match=r"results\.json.*another dataset"):
        attach_training_noise([image_dict], write([record(3, 6, gt_id=1234)]))


def test_training_noise_of_another_image(write, image_dict):
    with pytest.raises(ValueError, match=r"'gt_id' 5 belongs to image 3, its mask to image 8"):
        attach_training_noise([image_dict], write([record(8, 6, gt_id=5)]))


def test_a_sample_from_results(write, image_dict):
    (image_dict,) = attach_results([image_dict], write([record(3, 8), record(3, 2, category_id=7, score=0.25)]))
    sample = CoarseMaskMapper(DATASET, ("mask_head", 0.5))(image_dict)
    assert {"annotations", "coarse_results"}.isdisjoint(sample)
    assert sample["image"].dtype == torch.uint8 and sample["image"].shape == (3, 48, 64)
    assert sample["image"][:, 0, 0].tolist() == [30, 20, 10]  # RGB, from OpenCV's BGR
    coarse = sample["coarse_instances"]
    assert np.array_equal(coarse.pred_masks.numpy(), [square(8), square(2)])
    assert coarse.scores.tolist() == [0.5, 0.25]
    assert coarse.pred_classes.tolist() == [1, 0]


def test_a_sample_from_degraded_ground_truth(image_dict):
    mapper = CoarseMaskMapper(DATASET, ("morphological", 0.8))
    coarse = mapper(image_dict)["coarse_instances"]
    # the crowd is no object
    assert coarse.pred_classes.tolist() == [1]
    assert coarse.scores.tolist() == [1]
    assert not np.array_equal(coarse.pred_masks[0].numpy(), square(4))
    # the same image is always degraded the same way, another image in another
    assert torch.equal(mapper(image_dict)["coarse_instances"].pred_masks, coarse.pred_masks)
    other = mapper({**image_dict, "image_id": 4})["coarse_instances"]
    assert not torch.equal(other.pred_masks, coarse.pred_masks)


def test_an_image_without_masks(image_dict):
    sample = CoarseMaskMapper(DATASET, ("mask_head", 0.5))({**image_dict, "annotations": []})
    assert sample["coarse_instances"].pred_masks.shape == (0, 48, 64)


def test_unknown_degradation():
    with pytest.raises(ValueError, match=r"'fog'.*mask_head"):
        CoarseMaskMapper(DATASET, ("fog", 0.5))
    with pytest.raises(ValueError, match=r"1\.5.*0 to 1"):
        CoarseMaskMapper(DATASET, ("polygon", 1.5))


def test_a_broken_image_is_named(image_dict, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 cut short")
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        CoarseMaskMapper(DATASET, ("mask_head", 0.5))({**image_dict, "file_name": str(path)})


def test_a_category_that_the_dataset_has_not(write, image_dict):
    (image_dict,) = attach_results([image_dict], write([record(3, 8, category_id=1)]))
    with pytest.raises(ValueError, match=r"'test_coarse_masks' have the category 1, which is none of the dataset's"):
        CoarseMaskMapper(DATASET, ("mask_head", 0.5))(image_dict)


def test_categories_of_lvis_begin_with_1(write, image_dict):
    (image_dict,) = attach_results([image_dict], write([record(3, 8, category_id=1), record(3, 2, category_id=1203)]))
    name = "test_coarse_masks_lvis"
    MetadataCatalog.get(name).evaluator_type = "lvis"
    try:
        coarse = CoarseMaskMapper(name, ("mask_head", 0.5))(image_dict)["coarse_instances"]
    finally:
        MetadataCatalog.remove(name)
    assert coarse.pred_classes.tolist() == [0, 1202]
