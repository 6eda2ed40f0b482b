"""The command line of tools/calibrate_gate.py, on drawn pictures and a tiny refiner with random weights."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from phoenix_d2.data.datasets.drawn import draw_dataset
from phoenix_d2.data.degrade import degrade_annotations
from phoenix_d2.data.mask_json import decode_segmentation, encode_mask, load_annotations
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam.build import build_refiner

TOOL = Path(__file__).parents[2] / "tools" / "calibrate_gate.py"


def load_tool():
    spec = importlib.util.spec_from_file_location("calibrate_gate", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["calibrate_gate"] = module
    spec.loader.exec_module(module)
    return module


TOOL_MODULE = load_tool()


@pytest.fixture
def case(test_encoder, tmp_path):
    """Four pictures to calibrate on, the same with coarse masks to test on, and a refiner that knows nothing."""
    dataset = draw_dataset(tmp_path / "drawn", num_images=4, image_size=(96, 128))
    annotations = load_annotations(dataset.annotation_file)
    test = tmp_path / "held_out"
    shutil.copytree(dataset.image_folder, test / "images")
    shutil.copy(dataset.annotation_file, test / "instances.json")
    coarse = degrade_annotations(annotations, kind="polygon", strength=1.0)
    (test / "coarse_hasty.json").write_text(json.dumps(coarse))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        refiner = PhoenixRefiner(build_refiner("test", options=RefineOptions(num_iters=1)))
    weights = tmp_path / "weights.safetensors"
    refiner.save(weights)
    output = tmp_path / "out" / "gated.safetensors"

    def run(*arguments, **changes):
        options = {
            "weights": weights,
            "output": output,
            "images": dataset.image_folder,
            "annotations": dataset.annotation_file,
        } | changes
        TOOL_MODULE.main([*(part for key, value in options.items() for part in (f"--{key}", str(value))), *arguments])

    def error(*arguments, **changes):
        with pytest.raises(SystemExit) as exit_info:
            run(*arguments, **changes)
        return str(exit_info.value)

    degrade = ("--degrade", "mask_head", "morphological", "--strengths", "0.5")
    return SimpleNamespace(
        run=run, error=error, degrade=degrade, test=test, coarse=coarse, output=output, annotations=annotations
    )


def test_weights_are_written_with_a_gate_and_its_figures(case, capsys, monkeypatch):
    arguments = (*case.degrade, "--test", str(case.test))
    case.run(*arguments)
    refiner = PhoenixRefiner.from_pretrained(case.output).refiner
    report = json.loads(case.output.with_name("gated.gate.json").read_text())
    assert report["gate"] == json.loads(json.dumps(refiner.gate.to_metadata()))
    assert list(report["sets"]) == ["mask_head 0.50", "morphological 0.50", "held_out/hasty"]
    assert "coarse_iou" not in refiner.gate.evidence, "this decoder makes no such estimate"
    for figures in report["sets"].values():
        assert figures["masks"] == len(case.coarse)
        assert figures["IoU refined"] < figures["IoU coarse"] - 10, "random weights do harm"
        assert figures["IoU gated"] > figures["IoU coarse"] - 5 and figures["harm avoided"] > 80
        assert figures["IoU oracle"] + figures["bIoU oracle"] >= figures["IoU gated"] + figures["bIoU gated"]
    assert "held_out/hasty" in case.output.with_name("gated.gate.md").read_text()
    assert case.output.with_name("gated.gate.png").stat().st_size > 5000
    assert "held_out/hasty" in capsys.readouterr().out

    monkeypatch.setattr(PhoenixRefiner, "refine", lambda *_, **__: pytest.fail("measured once is measured"))
    case.run(*arguments)
    assert json.loads(case.output.with_name("gated.gate.json").read_text()) == report


def test_a_detectors_masks_find_their_objects(case, tmp_path):
    detections = [{key: value for key, value in record.items() if key != "gt_id"} for record in case.coarse]
    (tmp_path / "detections.json").write_text(json.dumps(detections))
    reports = []
    for path in (case.test / "coarse_hasty.json", tmp_path / "detections.json"):
        case.run("--coarse", str(path))
        (figures,) = json.loads(case.output.with_name("gated.gate.json").read_text())["sets"].values()
        reports.append(figures)
    assert 0.8 * reports[0]["masks"] < reports[1]["masks"] <= reports[0]["masks"]


def test_files_of_one_name_are_sets_of_their_own(case, tmp_path):
    paths = [tmp_path / name / "results.json" for name in ("a", "b")]
    for path, count in zip(paths, (-1, -2), strict=True):
        path.parent.mkdir()
        path.write_text(json.dumps(case.coarse[:count]))
    case.run("--coarse", *map(str, paths))
    report = json.loads(case.output.with_name("gated.gate.json").read_text())
    assert {name: figures["masks"] for name, figures in report["sets"].items()} == {
        str(path): len(case.coarse) + count for path, count in zip(paths, (-1, -2), strict=True)
    }
    assert "Several sets are called mask_head 1.00" in case.error("--degrade", "mask_head", "--strengths", "1", "0.999")


def test_other_targets_are_measured_anew(case, tmp_path):
    """Whoever mends the ground truth calibrates on it, though ids and coarse masks stay."""
    annotations = json.loads(json.dumps(case.annotations))
    path = tmp_path / "instances.json"
    reports = []
    for shift in (0, 60):
        for annotation, original in zip(annotations["annotations"], case.annotations["annotations"], strict=True):
            mask = np.roll(decode_segmentation(original["segmentation"], 96, 128), shift, axis=1)
            annotation["segmentation"] = encode_mask(mask)
        path.write_text(json.dumps(annotations))
        case.run("--coarse", str(case.test / "coarse_hasty.json"), annotations=path)
        (figures,) = json.loads(case.output.with_name("gated.gate.json").read_text())["sets"].values()
        reports.append(figures["IoU coarse"])
    assert reports[1] < reports[0] / 2


def test_a_set_of_files_and_drawn_images(case):
    case.run("--coarse", str(case.test / "coarse_hasty.json"), "--max-images", "2", "--margin", "0.2")
    report = json.loads(case.output.with_name("gated.gate.json").read_text())
    assert report["gate"]["margin"] == 0.2
    assert 0 < report["sets"]["coarse_hasty"]["masks"] < len(case.coarse)


def test_more_folders_are_made_coarse_too(case):
    case.run(*case.degrade, "--more", str(case.test))
    report = json.loads(case.output.with_name("gated.gate.json").read_text())
    names = ["mask_head 0.50", "morphological 0.50"]
    assert list(report["sets"]) == [*names, *(f"held_out {name}" for name in names)]
    assert {figures["masks"] for figures in report["sets"].values()} == {len(case.coarse)}


def test_wrong_use_is_explained(case, tmp_path, capsys):
    assert case.error() == "2" and "pass --coarse or --degrade" in capsys.readouterr().err
    assert case.error("--coarse", "a.json", "--more", "b") == "2" and "pass --degrade" in capsys.readouterr().err
    assert case.error(*case.degrade, output=tmp_path / "gated.pth") == "2"
    assert "ends in .safetensors" in capsys.readouterr().err
    assert "Unknown degradation 'blur'" in case.error("--degrade", "blur")
    shutil.copy(case.test / "instances.json", tmp_path)
    assert "holds no coarse_*.json" in case.error(*case.degrade, "--test", str(tmp_path))
    assert "a gate is calibrated on two at least" in case.error(*case.degrade, "--max-images", "1")
    (tmp_path / "none.json").write_text("[]")
    assert "has no mask of an object" in case.error("--coarse", str(tmp_path / "none.json"))
    assert not case.output.exists()


def test_the_gate_is_judged_without_the_images_that_it_was_fitted_to():
    from phoenix_d2.evidence import EVIDENCE
    from phoenix_d2.offline.calibrate import JudgedMasks, calibrate

    rng = np.random.default_rng(0)
    n = 200
    noise = JudgedMasks(
        image_ids=np.array([str(i // 4) for i in range(n)]),
        refined=np.arange(n) % 10 > 0,
        evidence=rng.random((n, len(EVIDENCE))),
        before=np.full((n, 2), 0.8),
        after=np.full((n, 2), 0.8) + rng.normal(0, 0.1, (n, 1)),
    )
    predicted = calibrate({"noise": noise}).predictions["noise"]["mask"].gains
    assert np.isnan(predicted).sum() == n // 10, "nothing is predicted of masks that were not refined"
    known = noise.refined
    assert abs(np.corrcoef(predicted[known], noise.gains[known])[0, 1]) < 0.2, "noise cannot be learned"


def test_no_set_loses_and_what_can_gain_does():
    """One kind of evidence tells what gains; in the second set everything loses a little, whatever it says."""
    from phoenix_d2.evidence import EVIDENCE
    from phoenix_d2.offline.calibrate import JudgedMasks, calibrate

    rng = np.random.default_rng(0)
    n = 400

    def judged(gains, evidence):
        before = np.full((n, 2), 0.5)
        image_ids = np.array([str(i // 4) for i in range(n)])
        return JudgedMasks(image_ids, np.ones(n, bool), evidence, before, before + gains[:, None])

    evidence = rng.random((2, n, len(EVIDENCE)))
    gains = 0.2 * (evidence[0, :, 0] - 0.5) + rng.normal(0, 0.01, n)
    losses = np.full(n, -0.01)
    evidence[1, :, 0] /= 2
    sets = {"mixed": judged(gains, evidence[0]), "good": judged(losses, evidence[1])}
    found = calibrate(sets)
    kept = {
        name: np.where(found.predictions[name]["source"].accepted(found.gate.margin), masks.gains, 0)
        for name, masks in sets.items()
    }
    assert kept["good"].mean() >= -0.001
    assert kept["mixed"].sum() > 0.8 * gains.clip(0).sum()
    assert calibrate(sets, margin=0.5).gate.margin == 0.5
