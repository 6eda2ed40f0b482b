#!/usr/bin/env python
"""Train or evaluate a refiner, in the manner of Detectron2's tools/train_net.py.

For example:

    python tools/train_net.py --config phoenix_tiny.yaml DATASETS.TRAIN "('path/to/folder',)"
    python tools/train_net.py --config phoenix_lvis.yaml --num-gpus 8
    python tools/train_net.py --config phoenix_lvis.yaml --eval-only MODEL.WEIGHTS output/phoenix_lvis/model_final.pth
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from phoenix_d2.arguments import errors_in_words


def get_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments; `--config` also finds shipped configs by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", "--config-file", dest="config_file", required=True, metavar="FILE",
        help="path of a config, or the name of one in configs/",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes per machine: one a GPU, or on the CPU")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0, help="rank of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", help="where processes meet, tcp://HOST:PORT; auto: this machine")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE KEY VALUE ...")
    return parser


def setup(args: argparse.Namespace) -> Any:
    """The config of a run: defaults, file, overrides; on a machine without a GPU the device becomes the CPU."""
    import torch
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    from phoenix_d2.config import find_config, load_config, override_config
    from phoenix_d2.data.datasets import register_folders

    args.config_file = find_config(args.config_file)
    cfg = load_config(args.config_file)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    override_config(cfg, args.opts)
    cfg.freeze()
    register_folders(cfg.DATASETS.TEST if args.eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="phoenix_d2")
    return cfg


def main(args: argparse.Namespace) -> Any:
    """Train, or evaluate; what is wrong with arguments, data or weights is said in a line before that begins."""
    # an empty dataset is an AssertionError of Detectron2's
    with errors_in_words(AssertionError):
        cfg = setup(args)
        from detectron2.evaluation import verify_results
        from detectron2.utils import comm

        from phoenix_d2.engine import Trainer
        from phoenix_d2.engine.checkpointer import RefinerCheckpointer

        if args.eval_only:
            model = Trainer.build_model(cfg)
            checkpointer = RefinerCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
            has_weights = cfg.MODEL.WEIGHTS or cfg.MODEL.PHOENIX.ENCODER.WEIGHTS
            if not (has_weights or (args.resume and checkpointer.has_checkpoint())):
                raise ValueError(
                    "--eval-only has no weights, and would evaluate a random decoder: set MODEL.WEIGHTS to a "
                    "checkpoint, or with --resume OUTPUT_DIR to the folder of a training run."
                )
            checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        else:
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=args.resume)
    # errors from here on keep their tracebacks
    if not args.eval_only:
        return trainer.train()
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


if __name__ == "__main__":
    parsed = get_parser().parse_args()
    from detectron2.engine import launch
    from torch.multiprocessing.spawn import ProcessExitedException

    try:
        launch(
            main,
            parsed.num_gpus,
            num_machines=parsed.num_machines,
            machine_rank=parsed.machine_rank,
            dist_url=parsed.dist_url,
            args=(parsed,),
        )
    except ProcessExitedException as error:
        # the process has said why
        sys.exit(f"error: {error}")
