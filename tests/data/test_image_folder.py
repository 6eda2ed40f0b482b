"""A folder of images as a dataset."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from phoenix_d2.data.datasets.image_folder import load_image_folder
from phoenix_d2.data.images import find_images


def test_images_of_all_folders_by_name(tmp_path):
    (tmp_path / "deeper").mkdir()
    for name in ("b.jpg", "deeper/a.PNG"):
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    dicts = load_image_folder(tmp_path)
    assert [d["image_id"] for d in dicts] == ["b.jpg", "deeper/a.PNG"]
    assert dicts[0] == {"file_name": str(tmp_path / "b.jpg"), "image_id": "b.jpg", "height": 4, "width": 6}


def test_a_folder_that_is_not_there_has_none(tmp_path):
    assert find_images(tmp_path / "nowhere") == []


def test_a_broken_image_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        load_image_folder(tmp_path)
