"""Training in two processes on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from phoenix_d2.data.datasets.drawn import draw_dataset

SCRIPT = Path(__file__).with_name("train_in_processes.py")
ROOT = SCRIPT.parents[2]


def train_in_two(drawn_folder, output, changes):
    """Train for three iterations, then evaluate."""
    overrides = {
        "MODEL.PHOENIX.ENCODER.NAME": "test",
        "MODEL.PHOENIX.PERTURBATION.NUM_EMBEDDINGS": 4,
        "MODEL.REFINER.NUM_ITERS": 1,
        "DATASETS.TRAIN": (drawn_folder,),
        "DATASETS.TEST": (drawn_folder,),
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 3,
        "TEST.EVAL_PERIOD": 3,
        "OUTPUT_DIR": output,
    } | changes
    options = [str(part) for pair in overrides.items() for part in pair]
    command = [sys.executable, str(SCRIPT), "--config", "phoenix_tiny.yaml", "--num-gpus", "2", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def metrics_of(output):
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["Phoenix", "PromptableDecoder"])
def test_two_processes_end_with_the_same_weights(drawn_folder, tmp_path, architecture):
    # every sample loses its points and box: their embeddings must not be "unused parameters"
    dropped = {"MODEL.PHOENIX.PROMPT.DROP_PROB": 1.0}
    train_in_two(drawn_folder, tmp_path, {"MODEL.META_ARCHITECTURE": architecture, **dropped})

    first, second = (torch.load(tmp_path / f"weights_{rank}.pt", weights_only=True) for rank in range(2))
    assert not [name for name, value in first.items() if not torch.equal(value, second[name])]
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(value, first[name]) for name, value in saved.items())
    metrics = metrics_of(tmp_path)
    assert any("total_loss" in line for line in metrics)
    assert any("segm/AP" in line and "coarse_boundary/AP" in line for line in metrics)
    assert ("loss_cmrl_inter" in metrics[0]) == (architecture == "Phoenix")


@pytest.mark.slow
def test_a_process_without_a_test_image_does_not_hang(drawn_folder, tmp_path):
    draw_dataset(tmp_path / "one", num_images=1, image_size=(96, 128))
    train_in_two(drawn_folder, tmp_path, {"DATASETS.TEST": (str(tmp_path / "one"),)})
    assert any("segm/AP" in line for line in metrics_of(tmp_path))
