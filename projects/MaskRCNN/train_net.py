"""Train or evaluate a Mask R-CNN in the manner of Detectron2's tools/train_net.py, with boundary AP and with a refiner.

The pictures of mask_rcnn_drawn.yaml are drawn first, unless they are there. For example:

    python -m projects.MaskRCNN.train_net
    python -m projects.MaskRCNN.train_net --eval-only MODEL.WEIGHTS output/mask_rcnn_drawn/model_final.pth
    python -m projects.MaskRCNN.train_net --eval-only --attach phoenix_tiny MODEL.WEIGHTS ...
    python -m projects.MaskRCNN.train_net --eval-only MODEL.META_ARCHITECTURE RefinedDetector MODEL.WEIGHTS ...

Results go to coco_instances_results.json in OUTPUT_DIR/coarse, or with a refiner in OUTPUT_DIR/refined.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from phoenix_d2.arguments import errors_in_words

CONFIG = Path(__file__).with_name("mask_rcnn_drawn.yaml")
# number of pictures and seed of the data sets that are drawn
DRAWN = {"output/drawn/train": (800, 1), "output/drawn/val": (40, 2)}


def get_parser() -> argparse.ArgumentParser:
    """Those of Detectron2's arguments that one process needs, and `--attach`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", "--config-file", dest="config_file", default=str(CONFIG), metavar="FILE")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST")
    parser.add_argument("--attach", metavar="WEIGHTS", help="evaluate with this refiner behind the model, by its hook")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE KEY VALUE ...")
    return parser


def setup(args: argparse.Namespace) -> Any:
    """The config of a run, its data sets drawn and registered."""
    from detectron2.engine import default_setup

    from phoenix_d2.config import load_config, override_config
    from phoenix_d2.data.datasets import register_folders
    from phoenix_d2.data.datasets.drawn import draw_dataset
    from projects.MaskRCNN import frozen_backbone  # noqa: F401, it registers itself

    cfg = load_config(args.config_file)
    override_config(cfg, args.opts)
    if args.attach:
        cfg.MODEL.REFINER.WEIGHTS = args.attach
    cfg.freeze()
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for name in DRAWN.keys() & names:
        num_images, seed = DRAWN[name]
        draw_dataset(name, num_images=num_images, image_size=(192, 256), seed=seed)
    register_folders(names)
    default_setup(cfg, args)
    return cfg


def main(args: argparse.Namespace) -> None:
    """Train and evaluate, or only evaluate; what is wrong with arguments or files is said in a line before."""
    # a missing checkpoint is an AssertionError of fvcore's
    with errors_in_words(AssertionError):
        cfg = setup(args)
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.engine import DefaultTrainer

        from phoenix_d2 import PhoenixRefiner
        from phoenix_d2.evaluation.evaluators import BoundaryCOCOEvaluator
        from phoenix_d2.modeling.hook import hook_of

        refiner = PhoenixRefiner.from_config(cfg) if args.attach else None
        if args.eval_only:
            model = DefaultTrainer.build_model(cfg)
            DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        else:
            trainer = DefaultTrainer(cfg)
            trainer.resume_or_load(resume=args.resume)
            model = trainer.model
    if not args.eval_only:
        trainer.train()
    if refiner is not None:
        refiner.attach(model)
    folder = Path(cfg.OUTPUT_DIR, "refined" if hook_of(model) else "coarse")
    evaluators = [BoundaryCOCOEvaluator(name, output_dir=str(folder)) for name in cfg.DATASETS.TEST]
    DefaultTrainer.test(cfg, model, evaluators)


if __name__ == "__main__":
    main(get_parser().parse_args())
