"""Ground-truth prompts in a results file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).parents[2] / "tools" / "add_cues.py"
    spec = importlib.util.spec_from_file_location("add_cues", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(tmp_path):
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    annotation = {"id": 5, "image_id": 1, "category_id": 1, "segmentation": square}
    truth = {"images": [{"id": 1, "height": 40, "width": 60}], "annotations": [annotation], "categories": []}
    result = {"image_id": 1, "category_id": 1, "segmentation": square, "score": 0.5, "gt_id": 5}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "coarse.json").write_text(json.dumps([result]))
    return tmp_path


def arguments(files, output):
    return ["--annotations", str(files / "gt.json"), "--input", str(files / "coarse.json"), "--output", str(output)]


def test_cues_are_written(tool, files):
    tool.main([*arguments(files, files / "out.json"), "--cues", "box"])
    (record,) = json.loads((files / "out.json").read_text())
    assert record["prompt_box"] == [10, 10, 20, 20] and "point_coords" not in record


def test_no_input_is_replaced(tool, files):
    with pytest.raises(SystemExit, match="error: --output"):
        tool.main(arguments(files, files / "coarse.json"))
