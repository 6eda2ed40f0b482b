"""tools/train_net.py in processes that know the tests' encoder; each saves its weights when it is done."""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.utils import comm

from phoenix_d2.engine import Trainer

TESTS = Path(__file__).parents[1]


class RecordingTrainer(Trainer):
    def after_train(self):
        super().after_train()
        torch.save(self.model.module.state_dict(), Path(self.cfg.OUTPUT_DIR, f"weights_{comm.get_rank()}.pt"))


def main(args: argparse.Namespace) -> None:
    import phoenix_d2.engine

    runpy.run_path(str(TESTS / "conftest.py"))["register_test_encoder"]()
    phoenix_d2.engine.Trainer = RecordingTrainer
    train_net()["main"](args)


def train_net():
    return runpy.run_path(str(TESTS.parent / "tools" / "train_net.py"))


if __name__ == "__main__":
    parsed = train_net()["get_parser"]().parse_args()
    launch(main, parsed.num_gpus, dist_url=parsed.dist_url, args=(parsed,))
