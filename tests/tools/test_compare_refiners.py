"""The command line of tools/compare_refiners.py, with refiners that need no weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from phoenix_d2.baselines.morphology import Morphology
from phoenix_d2.data.datasets.drawn import draw_dataset
from phoenix_d2.data.degrade import degrade_annotations
from phoenix_d2.data.mask_json import decode_segmentation, draw_images, load_annotations, load_results
from phoenix_d2.offline import compare
from phoenix_d2.offline.job import plan_job
from phoenix_d2.offline.survey import read_scene
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam.build import build_refiner
from tests.gates import gate_of

TOOL = Path(__file__).parents[2] / "tools" / "compare_refiners.py"
NUM_IMAGES = 4


def load_tool():
    spec = importlib.util.spec_from_file_location("compare_refiners", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Drawn pictures with two files of coarse masks."""
    folder = tmp_path_factory.mktemp("data") / "drawn"
    draw_dataset(folder, num_images=NUM_IMAGES, image_size=(96, 128))
    annotations = load_annotations(folder / "instances.json")
    for kind in ("polygon", "morphological"):
        masks = degrade_annotations(annotations, kind=kind, strength=0.7)
        (folder / f"coarse_{kind}.json").write_text(json.dumps(masks))
    return folder


@pytest.fixture
def case(folder, tmp_path, monkeypatch, capsys):
    """Calls of the tool; `refined` counts the images that are refined."""
    refined, original = [], compare.refine_image

    def refine_image(refiner, task, **options):
        refined.append(task.image_id)
        return original(refiner, task, **options)

    monkeypatch.setattr(compare, "refine_image", refine_image)

    class Case:
        output = tmp_path / "comparison"

        def run(self, *arguments, refiners=("grabcut", "morphology"), data=("--data", folder)):
            refined.clear()
            tool.main([*map(str, data), "--output", str(self.output), "--refiners", *refiners, *arguments])
            return json.loads((self.output / "comparison.json").read_text())["rows"]

        def error(self, *arguments, **changes):
            with pytest.raises(SystemExit) as stop:
                self.run(*arguments, **changes)
            return str(stop.value) + capsys.readouterr().err

        @property
        def num_refined(self):
            return len(refined)

    return Case()


def test_every_refiner_on_every_input(case, folder):
    rows = case.run("--kinds", "mask_head", "--strengths", "1/3", "1", data=("--data", folder, "--degrade", folder))
    inputs = ["drawn/morphological", "drawn/polygon", "drawn/mask_head-0.33", "drawn/mask_head-1.00"]
    refiners = ["coarse", "grabcut", "morphology"]
    assert [(row["input"], row["refiner"]) for row in rows] == [(i, r) for i in inputs for r in refiners]
    assert all(row["lead"] is not None for row in rows if row["refiner"] == "morphology")
    assert rows[3]["IoU"] < rows[6]["IoU"] and all(0 < row["AP"] <= 100 for row in rows)
    assert "| drawn/polygon" in (case.output / "comparison.md").read_text()
    assert (case.output / "comparison.png").stat().st_size > 5000

    coarse = load_results(folder / "coarse_polygon.json")
    assert load_results(case.output / "masks" / "drawn" / "polygon" / "coarse.json") == coarse
    masks = load_results(case.output / "masks" / "drawn" / "polygon" / "grabcut.json")
    keys = ("image_id", "category_id", "score", "gt_id")
    assert [[mask[key] for key in keys] for mask in masks] == [[mask[key] for key in keys] for mask in coarse]


def test_what_is_there_is_not_made_again(case):
    rows = case.run()
    assert case.num_refined == 2 * 2 * NUM_IMAGES
    assert case.run() == rows and case.num_refined == 0
    again = case.run(refiners=("grabcut", "morphology", "morphology:kernel=0.2"))
    assert case.num_refined == 2 * NUM_IMAGES
    assert [row for row in again if row["refiner"] != "morphology:kernel=0.2"] == rows
    (case.output / "masks" / "drawn" / "polygon" / "grabcut.json").unlink()
    case.run()
    assert case.num_refined == NUM_IMAGES


def test_other_parameters_are_another_result(case, monkeypatch):
    rows = case.run(refiners=["morphology"])
    monkeypatch.setattr(tool, "load_refiner", lambda name, args: Morphology(kernel=0.3))
    other = case.run(refiners=["morphology"])
    assert case.num_refined == 2 * NUM_IMAGES
    assert [row["IoU"] for row in other[::2]] == [row["IoU"] for row in rows[::2]]
    assert [row["IoU"] for row in other[1::2]] != [row["IoU"] for row in rows[1::2]]


def test_a_run_that_stopped_goes_on(case, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(tool, "write_report", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert "the same command goes on" in case.error()
    assert not (case.output / "comparison.md").exists()
    case.run()
    assert case.num_refined == 0


def test_fewer_images_are_drawn_by_seed(case):
    few = [case.run("--max-images", "2", "--seed", seed, refiners=["morphology"])[0]["masks"] for seed in "010"]
    assert few[0] == few[2] and case.num_refined == 4
    everything = case.run("--max-images", "100", refiners=["morphology"])[0]["masks"]
    assert max(few) < everything


def test_results_without_pairs_are_explained(case, folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "images").symlink_to(folder / "images")
    (other / "instances.json").write_bytes((folder / "instances.json").read_bytes())
    assert "other holds no coarse_*.json" in case.error(data=("--data", other))
    masks = load_results(folder / "coarse_polygon.json")
    (other / "coarse_polygon.json").write_text(json.dumps([{**masks[0]}, {**masks[1]} | {"gt_id": masks[0]["gt_id"]}]))
    del masks[0]["gt_id"]
    (other / "coarse_polygon.json").write_text(json.dumps(masks))
    assert "coarse_polygon.json: Result 0 (counted from 0) has no 'gt_id'" in case.error(data=("--data", other))


def test_images_without_a_mask_are_explained(case, folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "images").symlink_to(folder / "images")
    truth = load_annotations(folder / "instances.json")
    drawn = draw_images(truth, 1)["images"][0]["id"]
    of_others = [a for a in truth["annotations"] if a["image_id"] != drawn]
    (other / "instances.json").write_text(json.dumps({**truth, "annotations": of_others}))
    masks = [mask for mask in load_results(folder / "coarse_polygon.json") if mask["image_id"] != drawn]
    (other / "coarse_polygon.json").write_text(json.dumps(masks))
    for data, name in (("--data", "polygon"), ("--degrade", "mask_head-")):
        message = case.error("--max-images", "1", "--kinds", "mask_head", data=(data, other))
        assert f"'other/{name}" in message and "no mask in the 1 images that were drawn: raise" in message


def test_wrong_use_is_explained(case, folder):
    assert "nothing to compare on" in case.error(data=())
    assert "adversarial kind of --degrade needs --attack-weights" in case.error(data=("--degrade", folder))
    assert "Unknown refiner 'crf'" in case.error(refiners=["crf"])
    assert "'grabcut' has no option kernel" in case.error(refiners=["grabcut:kernel=1"])
    assert "expected option=value, got 'rim'" in case.error(refiners=["grabcut:rim"])
    assert "--weights of phoenix, which --refiners does not name" in case.error("--weights", "phoenix=a.pth")
    assert "'grabcut' takes no weights, got a.pth" in case.error("--weights", "grabcut=a.pth")
    assert "expected a strength from 0 to 1, got 4/3" in case.error("--strengths", "4/3")
    assert "Several inputs are named drawn/morphological, drawn/polygon" in case.error(data=("--data", folder, folder))
    assert not case.output.exists()


def test_figures_are_those_of_the_masks(case, folder):
    row = case.run(refiners=["morphology"])[1]
    annotations = load_annotations(folder / "instances.json")
    from phoenix_d2.evaluation.instance_masks import evaluate_masks, paired_iou

    masks = load_results(case.output / "masks" / "drawn" / "morphological" / "morphology.json")
    pairs, precision = paired_iou(annotations, masks), evaluate_masks(annotations, masks)
    np.testing.assert_allclose([row["IoU"], row["bIoU 2 %"]], [pairs.iou, pairs.boundary_iou], atol=1e-3)
    assert (row["AP"], row["bAP"]) == (precision["segm"]["AP"], precision["boundary"]["AP"])


def test_refiners_that_differ_in_their_gate_alone_refine_once(case, folder, monkeypatch):
    torch.manual_seed(0)
    network = build_refiner("tiny", input_size=64, options=RefineOptions(num_iters=1))
    network.gate = gate_of(1.0)
    refiner = PhoenixRefiner(network)
    variants = {"phoenix": refiner, "phoenix:gate=off": refiner.with_options(gate="off")}
    monkeypatch.setattr(tool, "load_refiner", lambda name, args: variants[name])
    rows = case.run(refiners=list(variants))
    assert case.num_refined == 2 * NUM_IMAGES
    assert [row["kept"] for row in rows if row["refiner"] != "coarse"] == [0] * 4

    # another gate decides on what is there; a refiner alone makes the same
    network.gate = gate_of(-1.0, margin=1.0)
    rows = case.run(refiners=list(variants))
    assert case.num_refined == 0
    assert [row["kept"] for row in rows if row["refiner"] != "coarse"] == [100, 0] * 2
    masks = load_results(case.output / "masks" / "drawn" / "polygon" / "phoenix%3Agate=off.json")
    task = plan_job(
        folder / "coarse_polygon.json", image_folder=folder / "images", annotation_file=folder / "instances.json"
    ).tasks[0]
    expected = variants["phoenix:gate=off"].refine(*read_scene(task)).masks
    found = [decode_segmentation(m["segmentation"], 96, 128) for m in masks if m["image_id"] == task.image_id]
    assert np.array_equal(found, expected)
