"""The command lines that attack a decoder: tools/analyze_noise.py and tools/degrade_json.py --kind adversarial."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from phoenix_d2.data.degrade import degrade_annotations
from phoenix_d2.data.mask_json import check_results, load_annotations
from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.sam.checkpoint import save_refiner

TOOLS = Path(__file__).parents[2] / "tools"
# runs a tool where any import of detectron2 or torch fails
LAUNCHER = """
import runpy, sys
sys.modules.update(detectron2=None, torch=None)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def attack(cfg, tmp_path):
    """Arguments that name a small network and a short attack."""
    config, weights = tmp_path / "attack.yaml", tmp_path / "network.safetensors"
    config.write_text(cfg.dump())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_refiner(build_refiner("test", options=RefineOptions()), weights)
    return ["--config", str(config), "--weights", str(weights)]


@pytest.fixture
def run(attack):
    """Run a tool in this process, with the encoder that all tests know."""

    def run_tool(name, *arguments):
        return runpy.run_path(str(TOOLS / name))["main"]([*attack, *map(str, arguments)])

    return run_tool


@pytest.fixture
def annotations(drawn_folder):
    return load_annotations(Path(drawn_folder, "instances.json"))


@pytest.mark.parametrize("tool", ["analyze_noise.py", "degrade_json.py", "run_ablation.py"])
def test_help_needs_neither_torch_nor_detectron2(tool):
    command = [sys.executable, "-c", LAUNCHER, str(TOOLS / tool), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}, check=False)
    assert done.returncode == 0 and "--weights" in done.stdout, done.stderr


def test_analyze(run, annotations, drawn_folder, tmp_path):
    coarse, output = tmp_path / "model.json", tmp_path / "noise"
    coarse.write_text(json.dumps(degrade_annotations(annotations, kind="polygon", strength=1.0)))
    arguments = ("--data", drawn_folder, "--max-images", 1, "--num-gallery", 1)
    run("analyze_noise.py", *arguments, "--output", output, "--results", coarse)
    names = sorted(path.name for path in output.iterdir())
    assert names[0] == "correlation.png" and names[1].startswith("gallery_") and names[2:] == ["noise.json", "noise.md"]
    content = json.loads((output / "noise.json").read_text())
    assert len(content["attacks"]) == 12
    assert {"adversarial", "morphological", "model"} < {row["source"] for row in content["correlation"]}
    # twelve attacks, four times morphology and one model for each mask
    assert len(content["draws"]) == 17 * content["attacks"][0]["attacks"]

    coarse.write_text(
        json.dumps([{k: v for k, v in r.items() if k != "gt_id"} for r in json.loads(coarse.read_text())])
    )
    with pytest.raises(SystemExit, match="No record of model has a gt_id"):
        run("analyze_noise.py", *arguments, "--output", output, "--results", coarse)


def test_crowds_are_nothing_to_measure(run, annotations, drawn_folder, tmp_path):
    crowds = [annotation | {"iscrowd": 1} for annotation in annotations["annotations"]]
    (tmp_path / "instances.json").write_text(json.dumps(annotations | {"annotations": crowds}))
    with pytest.raises(SystemExit, match="has no masks, or only crowds"):
        run("analyze_noise.py", "--data", tmp_path, "--output", tmp_path / "noise")


def test_degrade(run, annotations, drawn_folder, tmp_path, capsys):
    data, output = Path(drawn_folder), tmp_path / "coarse.json"
    arguments = ("--annotations", data / "instances.json", "--output", output, "--kind", "adversarial")
    run("degrade_json.py", *arguments, "--images", data / "images", "--strength", "1/1")
    records = json.loads(output.read_text())
    check_results(records, source=output, annotations=annotations)
    assert [record["gt_id"] for record in records] == [a["id"] for a in annotations["annotations"]]
    assert " % " in capsys.readouterr().out

    with pytest.raises(SystemExit):
        run("degrade_json.py", *arguments)
    assert "pass --weights and --images" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("degrade_json.py", *arguments, "--images", data / "images", "--strength", 2)
    assert "expected a strength from 0 to 1, got 2" in capsys.readouterr().err
