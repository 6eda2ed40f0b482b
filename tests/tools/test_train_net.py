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
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.sam.checkpoint import save_refiner

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


@pytest.fixture
def weights(test_encoder, tmp_path):
    """Of a decoder that learned nothing."""
    path = tmp_path / "random.safetensors"
    save_refiner(build_refiner("test"), path)
    return str(path)


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
def test_expected_results_are_checked(run, weights, value, fails):
    expected = f"[['coarse_segm', 'AP', {value}, 50.0]]"
    arguments = ("--eval-only", "MODEL.WEIGHTS", weights, "TEST.EXPECTED_RESULTS", expected)
    if fails:
        with pytest.raises(SystemExit, match="1"):
            run(*arguments)
    else:
        assert run(*arguments)


def test_the_config_of_the_run_is_kept(run, cfg, weights):
    run("--eval-only", "MODEL.WEIGHTS", weights)
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


@pytest.mark.parametrize("flags", [(), ("--resume",)])
def test_evaluation_wants_weights(run, flags):
    with pytest.raises(SystemExit, match=r"^error: --eval-only has no weights.* set MODEL.WEIGHTS"):
        run("--eval-only", *flags)


def test_a_folder_is_checked_before_training(run, drawn_folder, tmp_path):
    def fails(message, **changes):
        (tmp_path / "instances.json").write_text(json.dumps({**data, **changes}))
        with pytest.raises(SystemExit, match=rf"(?s)^error: .*{message}"):
            run("DATASETS.TRAIN", f"('{tmp_path}',)", "DATASETS.TEST", "()")

    data = json.loads(Path(drawn_folder, "instances.json").read_text())
    (tmp_path / "images").symlink_to(Path(drawn_folder, "images"))
    image, annotation = data["images"][0], data["annotations"][0]
    fails(r"'annotations' and 'categories'; annotations not found", annotations=None)
    fails("at least 3 points", annotations=[{**annotation, "segmentation": [[1, 2]]}])
    fails("category id 99 is not among the", annotations=[{**annotation, "category_id": 99}])
    fails(
        r"missing.*Check that .*images is the folder", images=[*data["images"], {**image, "id": 99, "file_name": "x"}]
    )
    fails(r"is 96 x 128 .* in the JSON 48 x 128", images=[{**image, "height": 48}], annotations=[])
    fails("takes numbers alone as ids, found 'a': number the images", images=[{**image, "id": "a"}], annotations=[])
    fails("No annotation of .* can be trained on: there are none", annotations=[])


def test_annotations_need_no_boxes(run, weights, drawn_folder, tmp_path):
    data = json.loads(Path(drawn_folder, "instances.json").read_text())
    for annotation in data["annotations"]:
        for key in ("bbox", "area", "iscrowd"):
            del annotation[key]
    (tmp_path / "images").symlink_to(Path(drawn_folder, "images"))
    (tmp_path / "instances.json").write_text(json.dumps(data))
    options = ("--eval-only", "MODEL.WEIGHTS", weights)
    without = run(*options, "DATASETS.TEST", f"('{tmp_path}',)")
    assert str(without) == str(run(*options))
    run("DATASETS.TRAIN", f"('{tmp_path}',)", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1")


def test_self_supervision_asks_for_images_alone(tool, cfg, drawn_folder, restored_loggers):
    options = {
        "MODEL.PHOENIX.ENCODER.NAME": "test",
        "MODEL.PHOENIX.ENCODER.WEIGHTS": "",
        "MODEL.PHOENIX.PERTURBATION.NUM_EMBEDDINGS": 4,
        "MODEL.PHOENIX.PERTURBATION.MAX_STEPS": 2,
        # random weights are sure of nothing
        "MODEL.PHOENIX.PSEUDO.MIN_IOU": 0.0,
        "DATASETS.TRAIN": (f"{drawn_folder}/images",),
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.AMP.ENABLED": False,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 1,
        "OUTPUT_DIR": cfg.OUTPUT_DIR,
    }
    overrides = [str(part) for pair in options.items() for part in pair]
    tool["main"](tool["get_parser"]().parse_args(["--config", "phoenix_selfsup.yaml", *overrides]))
    assert Path(cfg.OUTPUT_DIR, "model_final.pth").is_file()


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
