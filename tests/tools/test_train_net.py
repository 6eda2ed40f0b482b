"""The command line of tools/train_net.py."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from phoenix_d2.config import load_config

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "train_net.py"
# runs the tool where any import of detectron2 or torch fails
LAUNCHER = """
import runpy, sys
sys.modules.update(detectron2=None, torch=None)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(TOOL))


@pytest.fixture
def run(tool, cfg, drawn_folder, restored_loggers):
    """Run the tool in this process on the drawn pictures; arguments may replace what is set here."""

    def run_tool(*arguments, config="phoenix_tiny.yaml"):
        options = {
            "MODEL.PHOENIX.ENCODER.NAME": "test",
            "MODEL.PHOENIX.PERTURBATION.NUM_EMBEDDINGS": 4,
            "MODEL.REFINER.NUM_ITERS": 1,
            "DATASETS.TRAIN": (drawn_folder,),
            "DATASETS.TEST": (drawn_folder,),
            "DATALOADER.NUM_WORKERS": 0,
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.MAX_ITER": 2,
            "OUTPUT_DIR": cfg.OUTPUT_DIR,
        }
        flags = [argument for argument in arguments if argument.startswith("--")]
        overrides = [str(part) for pair in options.items() for part in pair] + list(arguments[len(flags) :])
        return tool["main"](tool["get_parser"]().parse_args(["--config", config, *flags, *overrides]))

    return run_tool


def test_help_needs_neither_torch_nor_detectron2():
    command = [sys.executable, "-c", LAUNCHER, str(TOOL), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}, check=False)
    assert done.returncode == 0, done.stderr
    options = ("--config", "--num-gpus", "--num-machines", "--machine-rank", "--dist-url", "--resume", "--eval-only")
    assert all(option in done.stdout for option in options)


def test_training_then_evaluating_what_was_trained(run, cfg):
    # Detectron2 returns the results of training only where some are expected
    trained = run("TEST.EXPECTED_RESULTS", "[['segm', 'AP', 50.0, 50.0]]")
    assert {"coarse_segm", "coarse_boundary", "segm", "boundary"} <= set(trained)
    weights = Path(cfg.OUTPUT_DIR, "model_final.pth")
    evaluated = run("--eval-only", "MODEL.WEIGHTS", str(weights))
    assert str(evaluated) == str(trained)  # as text NaN equals NaN
    # of the training folder, --resume evaluates the last checkpoint
    assert str(run("--eval-only", "--resume")) == str(trained)
    assert trained["coarse_segm"]["AP"] > trained["segm"]["AP"] >= 0


def test_resuming_goes_on_where_the_run_stopped(run, cfg, caplog):
    run()
    run("--resume", "SOLVER.MAX_ITER", "3")
    metrics = Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()
    iterations = [line["iteration"] for line in map(json.loads, metrics) if "total_loss" in line]
    assert iterations == [1, 2]
    assert "Starting training from iteration 2" in Path(cfg.OUTPUT_DIR, "log.txt").read_text()


@pytest.mark.parametrize(("value", "fails"), [(50.0, False), (1000.0, True)])
def test_expected_results_are_checked(run, value, fails):
    arguments = ("--eval-only", "TEST.EXPECTED_RESULTS", f"[['coarse_segm', 'AP', {value}, 50.0]]")
    if fails:
        with pytest.raises(SystemExit):
            run(*arguments)
    else:
        assert run(*arguments)


def test_the_config_of_the_run_is_kept(run, cfg):
    run("--eval-only")
    kept = load_config(str(Path(cfg.OUTPUT_DIR, "config.yaml")))
    assert kept.MODEL.PHOENIX.ENCODER.NAME == "test"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("MODEL.PHOENIX.PROMPT.POINT", "False"), r"PROMPT\.POINT False: Non-existent key: MODEL\.PHOENIX"),
        (("MODEL.WEIGHTS",), "MODEL.WEIGHTS: Override list has odd length"),
        (("DATASETS.TEST", "('no/such/folder',)"), "Unknown dataset 'no/such/folder'"),
        (("MODEL.WEIGHTS", "no_such.pth"), "No checkpoint 'no_such.pth': set MODEL.WEIGHTS"),
    ],
)
def test_what_a_user_can_help_is_said_in_a_line(run, arguments, message):
    for flags in ((), ("--eval-only",)):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            run(*flags, *arguments)


def test_a_config_that_there_is_not(run):
    with pytest.raises(SystemExit, match=r"error: .*'phoenix_lvs\.yaml'.*phoenix_lvis\.yaml"):
        run("--eval-only", config="phoenix_lvs.yaml")


def test_a_misspelt_key_in_a_config(run, tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text("MODEL:\n  PHOENIX:\n    PERTURBATION:\n      MAX_STEP: 3\n")
    with pytest.raises(SystemExit, match=r"error: .*typo\.yaml.*PERTURBATION\.MAX_STEP"):
        run("--eval-only", config=str(path))


def test_a_mistake_in_the_middle_of_training_keeps_its_traceback(run, monkeypatch):
    from phoenix_d2.engine import Trainer

    def run_step(self):
        raise ValueError("not the user's")

    monkeypatch.setattr(Trainer, "run_step", run_step)
    with pytest.raises(ValueError, match="not the user's"):
        run()
