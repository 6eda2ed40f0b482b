"""The command line of tools/run_ablation.py, end to end on drawn pictures."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
import yaml

from phoenix_d2.data.degrade import degrade_annotations
from phoenix_d2.data.mask_json import load_annotations
from phoenix_d2.engine import ablation as engine
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.sam.checkpoint import save_refiner

TOOL = Path(__file__).parents[2] / "tools" / "run_ablation.py"


@pytest.fixture
def weights(test_encoder, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_refiner(build_refiner("test"), tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


@pytest.fixture
def spec(cfg, tmp_path):
    """Two variants, refined in two ways; a base config of the small network that all tests train."""
    base = tmp_path / "base.yaml"
    base.write_text(cfg.dump())
    return {
        "base": str(base),
        "max_iter": 2,
        # large steps, which make a difference from the first
        "overrides": {"SOLVER.BASE_LR": 0.01, "SOLVER.WARMUP_ITERS": 0},
        "seeds": [1, 2],
        "axes": {"noise": {"morphological": {"MODEL.PHOENIX.PERTURBATION.MORPHOLOGY_PROB": 1.0}, "adversarial": {}}},
        "inference": {"1 pass": {"num_iters": 1}, "2 passes": {"num_iters": 2}},
        "inputs": {"polygon": ["polygon", 0.5]},
    }


@pytest.fixture
def run(spec, weights, drawn_folder, tmp_path):
    """Run the tool in this process on the ablation as `spec` says it now; the folder that it wrote to."""
    tool = runpy.run_path(str(TOOL))

    def run_tool(*arguments, name="small"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(spec, sort_keys=False))
        own = ("--weights", weights, "--train", drawn_folder, "--test", drawn_folder, "--output", tmp_path / "out")
        tool["main"]([str(path), *map(str, own), *map(str, arguments)])
        return tmp_path / "out" / name

    return run_tool


@pytest.fixture
def trained(monkeypatch):
    """(share of morphological noise, seed) of the runs that were trained."""
    runs = []
    train = engine.Trainer.train

    def spy(self):
        runs.append((self.cfg.MODEL.PHOENIX.PERTURBATION.MORPHOLOGY_PROB, self.cfg.SEED))
        return train(self)

    monkeypatch.setattr(engine.Trainer, "train", spy)
    return runs


@pytest.mark.slow
def test_run_and_go_on(run, spec, trained, drawn_folder):
    annotations = load_annotations(Path(drawn_folder, "instances.json"))
    coarse = Path(drawn_folder, "coarse_small.json")
    coarse.write_text(json.dumps(degrade_annotations(annotations, kind="mask_head", strength=1.0)))

    folder = run("--max-images", "2", "--coarse", coarse)
    assert [seed for _, seed in trained] == [1, 1, 2, 2]
    assert trained[0][0] == trained[2][0] == 1.0 != trained[1][0] == trained[3][0]
    figures = json.loads((folder / "small.json").read_text())
    assert [(r["variant"], r["seed"], r["iterations"]) for r in figures["runs"]] == [
        ("morphological", 1, 2), ("adversarial", 1, 2), ("morphological", 2, 2), ("adversarial", 2, 2),
    ]  # fmt: skip
    assert all(run["seconds"] > 0 for run in figures["runs"])
    first, second = (figures["runs"][i]["scores"]["polygon"]["1 pass"]["IoU"] for i in (0, 2))
    assert first != second
    assert list(figures["references"]) == ["coarse", "before training"]
    assert set(figures["differences"]) == {"polygon", "data small"}
    assert list(figures["differences"]["polygon"]) == [
        "morphological, 2 passes", "adversarial, 1 pass", "adversarial, 2 passes",
    ]  # fmt: skip
    assert "| morphological, 1 pass " in (folder / "small.md").read_text()
    assert (folder / "small.png").stat().st_size > 1000

    # what is finished is not done again; what is added is; a lost evaluation does not cost a training
    trained.clear()
    spec["seeds"].append(3)
    (folder / "runs" / "adversarial_1.json").unlink()
    run("--max-images", "2", "--coarse", coarse)
    assert [seed for _, seed in trained] == [3, 3]
    again = json.loads((folder / "small.json").read_text())
    assert len(again["runs"]) == 6 and again["runs"][:2] == figures["runs"][:2]


def test_another_setting_is_another_training(run, spec, trained):
    spec["seeds"], spec["inference"] = [1], {"": {"num_iters": 1}}
    run("--max-images", "1")
    trained.clear()
    spec["overrides"]["SOLVER.BASE_LR"] = 0.5
    run("--max-images", "1")
    assert len(trained) == 2


def test_ablations_share_trainings(run, spec, trained):
    spec["seeds"], spec["inference"] = [1], {"": {"num_iters": 1}}
    run("--max-images", "1")
    trained.clear()
    spec["axes"] = {"depth": {"usual": {}, "2 passes": {"MODEL.PHOENIX.CASCADE.MAX_DEPTH": 2}}}
    run("--max-images", "1", name="depth")
    assert len(trained) == 1


def test_equal_time(run, spec, monkeypatch):
    monkeypatch.setattr(engine, "_PROBE_ITERS", 3)
    del spec["max_iter"], spec["axes"]
    spec["seconds"], spec["seeds"], spec["inference"] = 0.5, [1], {"": {"num_iters": 1}}
    folder = run("--max-images", "1")
    (probe,) = folder.parent.glob("trainings/*/probe.json")
    cost = json.loads(probe.read_text())["made"]["seconds_per_iteration"]
    (only,) = json.loads((folder / "small.json").read_text())["runs"]
    assert only["iterations"] == max(round(0.5 / cost), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overrides": {"SOLVER.BASE_LRS": 0.5}}, "BASE_LRS"),
        ({"inputs": {"fog": ["fog", 0.5]}}, "Unknown degradation 'fog'"),
        ({"inputs": {}}, "nothing to evaluate on"),
    ],
)
def test_mistakes_are_found_before_training(run, spec, trained, change, message):
    spec |= change
    with pytest.raises(SystemExit, match=message):
        run()
    assert not trained


def test_overrides_reach_the_config(run, spec, trained):
    with pytest.raises(SystemExit, match="BASE_LRS"):
        run("--overrides", "SOLVER.BASE_LRS", "0.5")
    assert not trained


def test_an_override_without_a_value(run, capsys):
    with pytest.raises(SystemExit):
        run("--overrides", "SOLVER.BASE_LR")
    assert "pairs of a key and a value" in capsys.readouterr().err


def test_results_without_gt_id(run, drawn_folder, tmp_path):
    annotations = load_annotations(Path(drawn_folder, "instances.json"))
    records = degrade_annotations(annotations, kind="polygon", strength=1.0)
    del records[0]["gt_id"]
    coarse = Path(drawn_folder, "unpaired.json")
    coarse.write_text(json.dumps(records))
    with pytest.raises(SystemExit, match=r"unpaired\.json: results without gt_id"):
        run("--coarse", coarse)
