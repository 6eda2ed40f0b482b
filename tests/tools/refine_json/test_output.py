"""What is written, and what it says: the same records with better masks."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pycocotools.mask as mask_util

from phoenix_d2.data.mask_json import decode_segmentation, encode_mask
from tests.tools.refine_json.runs import LAUNCHER, NUM_IMAGES, SIZE, TOOL, without


def test_only_segmentations_change(case, results, capsys):
    refined = case.run()
    assert without(refined, "segmentation") == without(results, "segmentation")
    changed = sum(new["segmentation"] != old["segmentation"] for new, old in zip(refined, results, strict=True))
    assert changed > len(results) / 2
    assert all(decode_segmentation(record["segmentation"], *SIZE).any() for record in refined)
    output = capsys.readouterr().out
    assert f"{len(results)} masks in {NUM_IMAGES} images: " in output and " ms a mask" in output
    assert f"written to {case.output}" in output
    assert sorted(path.name for path in case.output.parent.iterdir()) == ["coarse.json", "refined.json"]


def test_some_images_first(case, results, capsys):
    refined = case.run("--max-images", "2")
    drawn = {record["image_id"] for record in refined}
    expected = [record for record in results if record["image_id"] in drawn]
    assert len(drawn) == 2 and without(refined, "segmentation") == without(expected, "segmentation")
    assert f"{len(refined)} masks in 2 images: " in capsys.readouterr().out


def test_annotations_of_every_form(case, drawn, capsys):
    data = json.loads(drawn.annotation_file.read_text())
    data["annotations"] = records = data["annotations"][:6]
    shape = np.zeros(SIZE, bool)
    shape[20:70, 30:90] = True
    records[1]["segmentation"] = [[30.5, 20.25, 90, 20, 90, 70, 30, 70]]
    records[2]["segmentation"] = {"size": list(SIZE), "counts": [0, SIZE[0] * SIZE[1]]}
    records[3]["segmentation"] = encode_mask(np.zeros(SIZE, bool))
    records[4] |= {"segmentation": encode_mask(shape), "iscrowd": 1}
    case.source.write_text(json.dumps(data))
    refined = case.run("--update-boxes", annotations=None)

    assert list(refined) == list(data)
    assert without([refined], "annotations") == without([data], "annotations")
    keys = ("segmentation", "bbox", "area")
    assert without(refined["annotations"], *keys) == without(records, *keys)
    assert [list(new) for new in refined["annotations"]] == [list(old) for old in records]
    # empty and crowd
    assert refined["annotations"][3:5] == records[3:5]
    for new in (refined["annotations"][i] for i in (0, 1, 5)):
        mask = decode_segmentation(new["segmentation"], *SIZE)
        assert isinstance(new["segmentation"]["counts"], str) and new["area"] == mask.sum()
        assert new["bbox"] == mask_util.toBbox(new["segmentation"]).tolist()
    assert re.search(r"6 masks in \d images: 4 refined, 2 kept \(1 empty, 1 crowd\)", capsys.readouterr().out)


def test_a_truncated_jpeg_is_named_and_its_masks_kept(case, drawn, results, reference, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(drawn.image_folder, folder)
    cut = sorted(folder.iterdir())[1]
    cut.write_bytes(cut.read_bytes()[:-500])
    refined = case.run(images=folder)
    for new, whole, old in zip(refined, json.loads(reference), results, strict=True):
        assert new == (old if old["image_id"] == 2 else whole)
    output = capsys.readouterr().out
    count = sum(record["image_id"] == 2 for record in results)
    assert f"{count} of unreadable images" in output
    assert re.search(rf"1 image\(s\) could not be read:\n.*{cut.name} cannot be read as an image", output)


def test_help_needs_neither_torch_nor_detectron2_and_has_examples():
    command = [sys.executable, "-c", LAUNCHER, "detectron2,torch", str(TOOL), "--help"]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "python tools/refine_json.py --images val2017 --input coco_instances_results.json" in completed.stdout
