"""Label maps as PNGs, and in the JSON of Detectron2's evaluator."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from phoenix_d2.data.label_maps import group_records, label_map_of_records, read_label_map, write_label_map
from phoenix_d2.data.mask_json import encode_mask

LABELS = np.array([[0, 1, 2], [3, 255, 4]], np.int32)


def record(label, mask, name="a.jpg"):
    return {"file_name": name, "category_id": label, "segmentation": encode_mask(mask)}


def test_what_was_written_is_read(tmp_path):
    for labels in (LABELS, LABELS * 200):
        write_label_map(tmp_path / "sub" / "a.png", labels)
        assert read_label_map(tmp_path / "sub" / "a.png").tolist() == labels.tolist()
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.png"]


def test_the_palette_is_kept(tmp_path):
    image = Image.fromarray((LABELS % 2).astype(np.uint8))
    image.putpalette([9, 8, 7, 6, 5, 4])
    image.save(tmp_path / "a.png")
    assert read_label_map(tmp_path / "a.png").tolist() == (LABELS % 2).tolist()
    write_label_map(tmp_path / "b.png", LABELS, palette_of=tmp_path / "a.png")
    with Image.open(tmp_path / "b.png") as written:
        assert written.mode == "P" and written.getpalette()[:6] == [9, 8, 7, 6, 5, 4]
    assert read_label_map(tmp_path / "b.png").tolist() == LABELS.tolist()


def test_colours_are_no_labels(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"mode RGB.*convert colours to labels"):
        read_label_map(tmp_path / "a.png")


def test_records_make_a_map():
    labels = label_map_of_records([record(label, label == LABELS) for label in (1, 3, 4)], LABELS.shape, void=9)
    assert labels.tolist() == [[9, 1, 9], [3, 9, 4]]


def test_records_are_grouped_by_image():
    records = [record(1, LABELS == 1), record(1, LABELS == 1, "b.jpg"), record(2, LABELS == 2)]
    assert group_records(records, source="x.json") == {"a.jpg": [records[0], records[2]], "b.jpg": [records[1]]}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"images": []}, "expected a list of dicts with 'file_name'"),
        ([{"file_name": "a.jpg", "category_id": 1}], "x.json: record 0"),
        ([record(-1, LABELS == 1)], "category_id must be an integer from 0 to 65535, found -1"),
        ([record(True, LABELS == 1)], "category_id must be"),
    ],
)
def test_malformed_records(records, message):
    with pytest.raises(ValueError, match=message):
        group_records(records, source="x.json")


def test_records_that_overlap_or_do_not_fit():
    with pytest.raises(ValueError, match=r"a\.jpg, category id 2: shares pixels"):
        label_map_of_records([record(1, LABELS == 1), record(2, LABELS <= 2)], LABELS.shape, void=9)
    with pytest.raises(ValueError, match=r"a\.jpg, category id 1: .*2 x 3.*4 x 4"):
        label_map_of_records([record(1, LABELS == 1)], (4, 4), void=9)
