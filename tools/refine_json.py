#!/usr/bin/env python
"""Refine the masks of a results or annotation JSON: the same records in the same order, with better masks."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phoenix_d2.arguments import positive_int

if TYPE_CHECKING:
    from collections.abc import Sequence

    from phoenix_d2.baselines import CropRefiner
    from phoenix_d2.offline.job import ImageTask
    from phoenix_d2.predictor import PhoenixRefiner

DETAILS = """\
examples:
  a detector's results:
    python tools/refine_json.py --images val2017 --input coco_instances_results.json \\
        --annotations instances_val2017.json --output refined.json
  annotations, with options from a config, on two processes:
    python tools/refine_json.py --config phoenix_tiny.yaml --weights model_final.pth --num-workers 2 \\
        --images images --input instances.json --output refined.json MODEL.REFINER.ZOOM_BELOW 0.5
  by a baseline that Phoenix is compared with:
    python tools/refine_json.py --refiner grabcut --images images --input instances.json --output refined.json
  go on after a run was killed:
    the same command with --resume

Only "segmentation" changes, to compressed RLE whatever it was; with --update-boxes also "bbox" and "area" of
refined masks, where a record has them. Crowds, empty masks and masks that the refiner would erase stay as they
were. All input is checked before the first image is refined. An image that turns out damaged only when it is
read leaves its masks as they were, is named in the summary, and does not change the exit status.

While it runs, finished images are kept in OUTPUT.partial, a folder beside the output. --resume goes on with them
on any number of workers and yields the same file. On a CPU, the last bits of sums depend on the threads of a
worker, by default the cores divided by the workers: set OMP_NUM_THREADS, the threads of each, for the same bytes
with another number of workers.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=DETAILS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--input", type=Path, required=True, metavar="JSON", help="COCO or LVIS results or annotations")
    parser.add_argument("--output", type=Path, required=True, metavar="JSON", help="written whole at the end")
    parser.add_argument(
        "--annotations", type=Path, metavar="JSON", help="annotation file that lists the images of a results file"
    )
    parser.add_argument(
        "--refiner", metavar="NAME",
        help="phoenix, samrefiner (its --weights are a decoder before Phoenix training), grabcut or morphology "
        "(default: MODEL.REFINER.NAME of the config, else phoenix)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", metavar="FILE",
        help="of a trained refiner: a file, or the name of weights that come with the package "
        "(default: MODEL.REFINER.WEIGHTS of the config, else phoenix_tiny for phoenix)",
    )  # fmt: skip
    parser.add_argument(
        "--config", metavar="FILE",
        help="path of a config, or the name of one in configs/, whose MODEL.REFINER replaces, where its keys are not "
        "None, the options stored with the weights; needs Detectron2",
    )  # fmt: skip
    parser.add_argument(
        "--num-iters",
        type=positive_int,
        metavar="T",
        help="passes of the cascade (default: as stored with the weights; 5 for samrefiner)",
    )
    parser.add_argument(
        "--gate", choices=("auto", "calibrated", "fixed", "off"),
        help="which refined masks replace coarse ones: off for all, where you know that yours are poor "
        "(default: as stored with the weights)",
    )  # fmt: skip
    parser.add_argument("--update-boxes", action="store_true", help="let boxes and areas follow the masks")
    parser.add_argument("--resume", action="store_true", help="go on with what a killed run had finished")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument(
        "--num-workers", type=positive_int, default=1, metavar="N",
        help="processes, one a GPU, or sharing the CPU; more than one needs Detectron2 (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config, at the end"
    )
    args = parser.parse_args(argv)
    if args.opts and args.config is None:
        parser.error(f"config overrides ({' '.join(args.opts)}) need --config")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run, and say in a line what went wrong."""
    args = parse_args(argv)
    try:
        run(args)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def run(args: argparse.Namespace) -> None:
    """Check everything, refine image by image, write the output."""
    # heavy imports stay out of the way of --help
    from phoenix_d2.data.mask_json import write_json_atomically
    from phoenix_d2.offline.job import plan_job
    from phoenix_d2.offline.journal import Journal, fingerprint_of

    check_output(args)
    check_workers(args)
    refiner = load_refiner(args, "cpu" if args.num_workers > 1 else pick_device(args))
    job = plan_job(args.input, image_folder=args.images, annotation_file=args.annotations)
    journal = Journal(args.output)
    journal.begin(
        fingerprint_of(
            refiner, input_file=args.input, annotation_file=args.annotations, update_boxes=args.update_boxes
        ),
        resume=args.resume,
    )
    finished = journal.outcomes()
    remaining = [task for task in job.tasks if task.image_id not in finished]
    try:
        if args.num_workers == 1:
            refine_share(args, remaining, journal.next_file(), refiner)
        else:
            launch_workers(args, remaining, journal.next_file())
    except (Exception, KeyboardInterrupt):
        print(f"Finished images are kept in {journal.folder}: go on with --resume.", file=sys.stderr)
        raise
    outcomes = journal.outcomes()
    write_json_atomically(args.output, job.finished(outcomes))
    journal.remove()
    print(f"{job.summary(outcomes)}\nwritten to {args.output}")


def check_output(args: argparse.Namespace) -> None:
    """Refuse to replace what is read, or a folder."""
    if args.output.is_dir():
        raise ValueError(f"--output {args.output} is a folder: name a file.")
    if args.output.resolve() in [path.resolve() for path in (args.input, args.annotations) if path]:
        raise ValueError(f"--output {args.output} is also read: write to another file.")


def check_workers(args: argparse.Namespace) -> None:
    """Refuse more workers than GPUs where there are any, as Detectron2's launcher does, but with a remedy."""
    import torch

    if torch.cuda.is_available() and args.num_workers > max(torch.cuda.device_count(), 1):
        raise ValueError(
            f"--num-workers {args.num_workers} exceeds the GPUs of this machine, {torch.cuda.device_count()}: ask for "
            "fewer, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to work on the CPU."
        )


def pick_device(args: argparse.Namespace) -> str:
    """What was asked for, or the best there is."""
    import torch

    return args.device or ("cuda" if torch.cuda.is_available() else "cpu")


def load_refiner(args: argparse.Namespace, device: str) -> PhoenixRefiner | CropRefiner:
    """The refiner that arguments and config name."""
    from phoenix_d2.baselines import CLASSICAL, build_refiner, check_name

    cfg = None if args.config is None else read_config(args)
    name = args.refiner or ("phoenix" if cfg is None else cfg.MODEL.REFINER.NAME)
    check_name(name)
    if name in CLASSICAL:
        flags = {"--weights": args.weights, "--num-iters": args.num_iters, "--gate": args.gate}
        given = [flag for flag, value in flags.items() if value]
        if given:
            raise ValueError(f"The refiner {name!r} has no network: omit {' and '.join(given)}.")
        parameters = {} if cfg is None else cfg.MODEL.REFINER[name.upper()]
        return build_refiner(name, **{key.lower(): value for key, value in parameters.items()})
    given_options = {"num_iters": args.num_iters, "gate": args.gate}
    options = {key: value for key, value in given_options.items() if value is not None}
    if cfg is None:
        return build_refiner(name, weights=args.weights, device=device, **options)
    return configured_refiner(args, cfg, name, device, **options)


def read_config(args: argparse.Namespace) -> Any:
    """The config with the overrides of the command line."""
    from phoenix_d2.config import load_config

    cfg = load_config(args.config)
    try:
        cfg.merge_from_list(args.opts)
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"{' '.join(args.opts)}: {error.args[0]}. All keys are in phoenix_d2/config.py.") from error
    return cfg


def configured_refiner(args: argparse.Namespace, cfg: Any, name: str, device: str, **options: Any) -> PhoenixRefiner:
    """A refiner with a network, of the weights of the command line before those of the config."""
    from dataclasses import replace

    from phoenix_d2.baselines import LEARNED, choose_weights
    from phoenix_d2.modeling.build import refine_options
    from phoenix_d2.predictor import PhoenixRefiner
    from phoenix_d2.sam.pretrained import find_weights

    cfg.MODEL.DEVICE = device
    if args.weights or not cfg.MODEL.REFINER.WEIGHTS:
        cfg.MODEL.REFINER.WEIGHTS = str(find_weights(choose_weights(name, args.weights)))
    refiner = LEARNED[name](PhoenixRefiner.from_config(cfg))
    # the config goes before what the refiner's name stands for
    refiner.refiner.options = replace(refine_options(cfg, refiner.options), **options)
    return refiner


def refine_share(
    args: argparse.Namespace,
    tasks: Sequence[ImageTask],
    file_number: int,
    refiner: PhoenixRefiner | CropRefiner,
    *,
    bar: bool = True,
) -> None:
    """Refine images into a journal file of their own."""
    from tqdm import tqdm

    from phoenix_d2.offline.journal import Journal
    from phoenix_d2.offline.refine import refine_images

    num_masks = sum(len(task.records) for task in tasks)
    with (
        Journal(args.output).file(file_number) as file,
        tqdm(total=num_masks, unit="mask", disable=None if bar else True) as progress,
    ):
        for outcome in refine_images(refiner, tasks, file, update_boxes=args.update_boxes):
            progress.update(len(outcome.changes))


def launch_workers(args: argparse.Namespace, tasks: Sequence[ImageTask], first_file: int) -> None:
    """Share the images out to processes and wait for all."""
    from detectron2.engine import launch

    launch(work, args.num_workers, dist_url="auto", args=(args, tasks, first_file))


def work(args: argparse.Namespace, tasks: Sequence[ImageTask], first_file: int) -> None:
    """One of several processes; the first shows its own progress, which is about that of all."""
    import torch
    import torch.distributed as dist

    from phoenix_d2.offline.job import share

    rank = dist.get_rank()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(torch.get_num_threads() // args.num_workers, 1))
    refiner = load_refiner(args, pick_device(args))
    refine_share(args, share(tasks, rank, args.num_workers), first_file + rank, refiner, bar=rank == 0)


if __name__ == "__main__":
    main()
