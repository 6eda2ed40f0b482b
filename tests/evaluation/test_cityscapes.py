"""Cityscapes' own AP on drawn data, and the tools around it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from phoenix_d2.data.datasets.cityscapes import cityscapes_annotations
from phoenix_d2.evaluation.cityscapes import evaluate_cityscapes

TOOLS = Path(__file__).parents[2] / "tools"


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(cityscapes_root):
    return cityscapes_root


@pytest.fixture
def truth(root):
    return cityscapes_annotations(root, "val")


def right_results(truth):
    keys = ("image_id", "category_id", "segmentation")
    return [{key: a[key] for key in keys} | {"score": 0.9} for a in truth["annotations"] if not a["iscrowd"]]


def test_the_truth_scores_full(root, truth):
    pytest.importorskip("cityscapesscripts")
    scores = evaluate_cityscapes(truth, right_results(truth), gt_dir=root / "gtFine/val")
    assert scores == {"AP": pytest.approx(100), "AP50": pytest.approx(100)}


def test_a_missed_car_costs_half_of_its_class(root, truth):
    pytest.importorskip("cityscapesscripts")
    results = [r for r in right_results(truth) if r["category_id"] != 26 or r["segmentation"] != car(truth)]
    scores = evaluate_cityscapes(truth, results, gt_dir=root / "gtFine/val")
    # of the classes that are there, rider has 100 and car about 50
    assert 70 < scores["AP50"] < 80


def car(truth):
    return next(a["segmentation"] for a in truth["annotations"] if a["category_id"] == 26)


def test_without_the_publishers_scripts(root, truth, monkeypatch):
    monkeypatch.setattr("phoenix_d2.evaluation.cityscapes.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install cityscapesscripts"):
        evaluate_cityscapes(truth, [], gt_dir=root / "gtFine/val")


def test_from_the_layout_to_a_table(root, capsys):
    pytest.importorskip("cityscapesscripts")
    instances, results = root / "instances.json", root / "results.json"
    load_tool("prepare_cityscapes").main(["--root", str(root), "--output", str(instances)])
    results.write_text(json.dumps(right_results(json.loads(instances.read_text()))))
    load_tool("evaluate_cityscapes").main(
        ["--root", str(root), "--annotations", str(instances), "--results", str(results)]
    )
    table = capsys.readouterr().out
    assert "CityAP50" in table and "100.00" in table
