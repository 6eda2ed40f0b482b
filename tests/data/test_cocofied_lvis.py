"""LVIS annotations with COCO's categories, on a file whose conversion can be written down."""

from __future__ import annotations

import copy
import json

import pytest

from phoenix_d2.data.cocofied_lvis import COCO_SYNSETS, cocofy

POLYGON = [[1, 1, 9, 1, 9, 9]]


def annotation(id_, image_id, category_id):
    return {"id": id_, "image_id": image_id, "category_id": category_id, "segmentation": POLYGON, "area": 32.0}


@pytest.fixture
def lvis():
    categories = [(3, "cow.n.99", "r"), (80, "beef.n.01", "f"), (7, "person.n.01", "f"), (9, "zebra.n.01", "c")]
    return {
        "info": {"version": "v1"},
        "images": [
            {"id": 1, "height": 9, "width": 9, "neg_category_ids": [3, 7], "not_exhaustive_category_ids": [80]},
            {"id": 2, "height": 9, "width": 9, "neg_category_ids": [9], "not_exhaustive_category_ids": []},
        ],
        "annotations": [annotation(11, 1, 80), annotation(12, 1, 3), annotation(13, 2, 7)],
        "categories": [{"id": i, "synset": synset, "frequency": f} for i, synset, f in categories],
    }


def test_images_of_both_and_categories_of_both_are_kept(lvis):
    before = copy.deepcopy(lvis)
    cocofied = cocofy(lvis, {"images": [{"id": 1}, {"id": 5}]})
    assert lvis == before and cocofied["info"] == lvis["info"]
    [image] = cocofied["images"]
    assert image == before["images"][0] | {"neg_category_ids": [1], "not_exhaustive_category_ids": [21]}
    assert cocofied["annotations"] == [annotation(11, 1, 21)]
    # nobody says whether image 1 has a zebra
    assert [(c["id"], c["synset"], c["frequency"]) for c in cocofied["categories"]] == [
        (21, "beef.n.01", "f"), (1, "person.n.01", "f"),
    ]  # fmt: skip


def test_files_without_a_common_image(lvis):
    with pytest.raises(ValueError, match=r"None of the 2 LVIS images is among the 1 of the COCO file: name the COCO"):
        cocofy(lvis, {"images": [{"id": 5}]})


@pytest.mark.parametrize(("table", "key"), [("categories", "synset"), ("images", "neg_category_ids")])
def test_a_file_that_is_none_of_lvis(lvis, table, key):
    del lvis[table][0][key]
    with pytest.raises(ValueError, match=r"some lack them\. Pass a file as LVIS publishes it"):
        cocofy(lvis, {"images": [{"id": 1}]})


def test_the_synsets_are_lvis_and_the_ids_coco():
    pytest.importorskip("detectron2")
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

    things = {category["id"]: category["name"] for category in COCO_CATEGORIES if category["isthing"]}
    synonyms = {category["synset"]: category["synonyms"] for category in LVIS_CATEGORIES}
    assert COCO_SYNSETS.keys() == things.keys() and len(set(COCO_SYNSETS.values())) == 80
    assert set(COCO_SYNSETS.values()) - synonyms.keys() == {"frank.n.02"}
    # where LVIS has a category of COCO's own word, or two words written together, it is that one
    by_word = {
        word.partition("_(")[0].replace("_", " "): synset for synset, words in synonyms.items() for word in words
    }
    same_word = [i for i, name in things.items() if by_word.get(name) == COCO_SYNSETS[i]]
    other_word = {things[i] for i in things.keys() - set(same_word)}
    assert len(same_word) > 60, other_word


def test_the_tool_converts_and_explains(lvis, tmp_path, monkeypatch, capsys):
    import runpy
    from pathlib import Path

    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "prepare_cocofied_lvis.py"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(SystemExit, match=r"error: .*lvis_v1_val\.json"):
        tool["main"]([])
    coco = {"images": [{"id": 1, "height": 9, "width": 9}], "annotations": [], "categories": []}
    for name, data in (("lvis/lvis_v1_val.json", lvis), ("coco/annotations/instances_val2017.json", coco)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(json.dumps(data))
    with pytest.raises(SystemExit, match="is also read: write to another file"):
        tool["main"](["--output", str(tmp_path / "lvis/lvis_v1_val.json")])
    tool["main"]([])
    written = json.loads((tmp_path / "lvis/lvis_v1_val_cocofied.json").read_text())
    assert written == cocofy(lvis, coco)
    assert "1 images, 1 annotations, 2 categories, written to" in capsys.readouterr().out
