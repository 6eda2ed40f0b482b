"""What other frameworks write becomes COCO results."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from phoenix_d2.data.detector_results import convert_results
from phoenix_d2.data.mask_json import decode_segmentation, encode_mask

SIZE = (20, 30)


@pytest.fixture
def annotations():
    """Three images, two categories whose ids have a gap."""
    names = ["000139.jpg", "street/cat.v1.jpg", "dog.png"]
    images = [
        {"id": i, "file_name": n, "height": SIZE[0], "width": SIZE[1]} for i, n in zip((7, 8, 9), names, strict=True)
    ]
    return {"images": images, "annotations": [], "categories": [{"id": 3, "name": "b"}, {"id": 1, "name": "a"}]}


def square(x=5):
    mask = np.zeros(SIZE, bool)
    mask[4:12, x : x + 8] = True
    return mask


def yolo(tmp_path, *results):
    path = tmp_path / "predictions.json"
    fields = {"bbox": [5.0, 4.0, 8.0, 8.0], "score": 0.5, "segmentation": encode_mask(square())}
    path.write_text(json.dumps([fields | result for result in results]))
    return path


def test_ultralytics_names_images_by_stem_or_number(tmp_path, annotations):
    path = yolo(tmp_path, {"image_id": 139, "category_id": 3}, {"image_id": "cat.v1", "category_id": 1})
    results = convert_results("ultralytics", path, annotations)
    assert [(each["image_id"], each["category_id"]) for each in results] == [(7, 3), (8, 1)]
    assert results[0]["bbox"] == [5.0, 4.0, 8.0, 8.0] and results[0]["score"] == 0.5


@pytest.mark.parametrize("first", [0, 1])
def test_labels_may_count_categories(tmp_path, annotations, first):
    path = yolo(tmp_path, *({"image_id": 139, "category_id": first + index} for index in (0, 1)))
    results = convert_results("ultralytics", path, annotations, first_label=first)
    assert [each["category_id"] for each in results] == [1, 3], "in the order of their ids"


def test_label_out_of_range(tmp_path, annotations):
    path = yolo(tmp_path, {"image_id": 139, "category_id": 2})
    with pytest.raises(ValueError, match=r"label 2 is none of the 2 categories, counted from 0\..*--first-label"):
        convert_results("ultralytics", path, annotations, first_label=0)
    named = yolo(tmp_path, {"image_id": 139, "category_id": "dog"})
    with pytest.raises(ValueError, match="label 'dog' is none of the 2 categories"):
        convert_results("ultralytics", named, annotations, first_label=0)
    path = yolo(tmp_path, {"image_id": 139, "category_id": 2})
    with pytest.raises(ValueError, match="category id 2 is not among"):
        convert_results("ultralytics", path, annotations)


def test_unknown_and_ambiguous_images(tmp_path, annotations):
    path = yolo(tmp_path, {"image_id": "bird", "category_id": 1})
    with pytest.raises(ValueError, match="no image is called 'bird' among the 3"):
        convert_results("ultralytics", path, annotations)
    annotations["images"][2]["file_name"] = "park/cat.v1.png"
    path = yolo(tmp_path, {"image_id": "cat.v1", "category_id": 1})
    with pytest.raises(ValueError, match=r"2 images are called 'cat\.v1'"):
        convert_results("ultralytics", path, annotations)


def test_not_predictions(tmp_path, annotations):
    path = tmp_path / "predictions.json"
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match="expected a list of results"):
        convert_results("ultralytics", path, annotations)


def saved(tmp_path, outputs):
    path = tmp_path / "outputs.pth"
    torch.save(outputs, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool])
def test_torchvision(tmp_path, annotations, dtype):
    masks = torch.from_numpy(np.stack([square(), square(15)]))
    soft = masks if dtype == torch.bool else (0.2 + 0.6 * masks[:, None].float()).to(dtype)
    output = {"masks": soft, "labels": torch.tensor([1, 3]), "scores": torch.tensor([0.75, 0.5])}
    output["boxes"] = torch.tensor([[5.0, 4, 13, 12], [15, 4, 23, 12]])
    none = {key: value[:0] for key, value in output.items()}
    path = saved(tmp_path, {"street/cat.v1.jpg": output, "dog.png": none})
    results = convert_results("torchvision", path, annotations)
    assert [(each["image_id"], each["category_id"], each["score"]) for each in results] == [(8, 1, 0.75), (8, 3, 0.5)]
    assert results[1]["bbox"] == [15, 4, 8, 8]
    for result, mask in zip(results, masks.numpy(), strict=True):
        assert (decode_segmentation(result["segmentation"], *SIZE) == mask).all()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"labels": torch.ones(1), "scores": torch.ones(1)}, "dog.png: tensors of .*; expected masks .N, 1, H, W."),
        ({"masks": torch.ones(2, 1, *SIZE), "labels": torch.ones(1), "scores": torch.ones(1)}, "expected masks"),
        ({"masks": torch.ones(1, 2, *SIZE), "labels": torch.ones(1), "scores": torch.ones(1)}, "expected masks"),
        (
            {"masks": torch.ones(1, *SIZE), "labels": torch.ones(1), "scores": torch.ones(1), "boxes": torch.ones(4)},
            "expected masks",
        ),
        ({"masks": torch.ones(1, 1, 9, 9), "labels": torch.ones(1), "scores": torch.ones(1)}, "the mask is 9 x 9"),
        (torch.ones(1), "expected a dict from the names of files"),
    ],
)
def test_not_torchvisions_output(tmp_path, annotations, output, message):
    with pytest.raises(ValueError, match=message):
        convert_results("torchvision", saved(tmp_path, {"dog.png": output}), annotations)


def test_files_that_hold_code_are_not_loaded(tmp_path, annotations):
    path = saved(tmp_path, {"dog.png": print})
    with pytest.raises(ValueError, match="cannot be loaded as tensors alone"):
        convert_results("torchvision", path, annotations)


def test_masks_one_file_an_image_or_a_folder(tmp_path, annotations):
    labels = square() + 2 * square(15).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "dog.png"), labels)
    (tmp_path / "street" / "cat.v1").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "street" / "cat.v1" / "0.png"), square(20) * np.uint8(1))
    (tmp_path / "000139").mkdir()
    for index, x in enumerate((0, 20)):
        cv2.imwrite(str(tmp_path / "000139" / f"{index}.png"), square(x) * np.uint8(255))
    results = convert_results("masks", tmp_path, annotations, category_id=3)
    assert [each["image_id"] for each in results] == [7, 7, 9, 9, 8]
    assert all((each["category_id"], each["score"]) == (3, 1.0) for each in results)
    for result, x in zip(results, (0, 20, 5, 15, 20), strict=True):
        assert (decode_segmentation(result["segmentation"], *SIZE) == square(x)).all()


def test_masks_need_a_category_where_there_are_several(tmp_path, annotations):
    cv2.imwrite(str(tmp_path / "dog.png"), square() * np.uint8(1))
    with pytest.raises(ValueError, match=r"has 2 categories: say of which one.*--category"):
        convert_results("masks", tmp_path, annotations)
    del annotations["categories"][0]
    (result,) = convert_results("masks", tmp_path, annotations)
    assert result["category_id"] == 1


def test_folder_without_masks(tmp_path, annotations):
    with pytest.raises(ValueError, match="holds no PNG"):
        convert_results("masks", tmp_path, annotations, category_id=1)


@pytest.mark.parametrize(("kind", "option"), [("masks", "first_label"), ("torchvision", "category_id")])
def test_options_of_other_formats(tmp_path, annotations, kind, option):
    with pytest.raises(ValueError, match="--category"):
        convert_results(kind, tmp_path, annotations, **{option: 1})
