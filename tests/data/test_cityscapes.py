"""Cityscapes' instances, drawn in the layout that its publisher ships."""

from __future__ import annotations

import numpy as np
import pytest

from phoenix_d2.data.datasets.cityscapes import cityscapes_annotations
from phoenix_d2.data.mask_json import check_annotations, decode_segmentation


@pytest.fixture
def root(cityscapes_root):
    return cityscapes_root


def test_objects_and_groups_become_annotations(root):
    data = cityscapes_annotations(root, "val")
    check_annotations(data, source="")
    assert [image["file_name"] for image in data["images"]] == [
        "bonn/bonn_000000_000019_leftImg8bit.png",
        "ulm/ulm_000001_000019_leftImg8bit.png",
    ]
    fields = [(a["image_id"], a["category_id"], a["iscrowd"], a["area"]) for a in data["annotations"]]
    # a group of persons, two cars; a rider: the road and the caravan are no such instances
    assert fields == [(1, 24, 1, 600), (1, 26, 0, 1600), (1, 26, 0, 1200), (2, 25, 0, 800)]
    car = data["annotations"][1]
    mask = np.zeros((80, 160), bool)
    mask[20:60, 20:60] = True
    np.testing.assert_array_equal(decode_segmentation(car["segmentation"], 80, 160), mask)
    assert car["bbox"] == [20, 20, 40, 40]


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(ValueError, match="gtFine/ and leftImg8bit/"):
        cityscapes_annotations(tmp_path, "val")


def test_an_image_that_is_missing(root):
    (root / "leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png").unlink()
    with pytest.raises(ValueError, match=r"ulm_000001_000019_leftImg8bit\.png is missing"):
        cityscapes_annotations(root, "val")


def test_a_label_map_of_eight_bits(root):
    path = root / "gtFine/val/ulm/ulm_000001_000019_gtFine_instanceIds.png"
    path.write_bytes((root / "leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png").read_bytes())
    with pytest.raises(ValueError, match="no 16-bit label map"):
        cityscapes_annotations(root, "val")
