#!/usr/bin/env python
"""Refine a folder of PNG masks, one an image: a folder of better masks under the same names."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from phoenix_d2.arguments import (
    add_refiner_arguments,
    add_run_arguments,
    check_new_folder,
    errors_in_words,
    load_refiner,
    run_options,
)

DETAILS = """\
examples:
  the masks of any model for DIS5K:
    python tools/refine_masks.py --images DIS5K/DIS-VD/im --masks isnet/DIS-VD --output refined/DIS-VD
  fine parts of large masks, on windows along the outline at the image's own resolution:
    python tools/refine_masks.py --config phoenix_dis.yaml --weights model_final.pth \\
        --images DIS5K/DIS-VD/im --masks isnet/DIS-VD --output refined/DIS-VD MODEL.REFINER.WINDOW_SCALE 1.0
  names with a suffix, as ISIC_0000000_segmentation.png of ISIC_0000000.jpg:
    python tools/refine_masks.py --suffix _segmentation --images images --masks unet --output refined
  go on after a run was killed:
    the same command with --resume

An image and its mask have the same name but for the ending. Masks are grey or black and white, and count from half of
white on; what is written is 0 and 255. Empty masks, and those that the refiner would erase, stay as they were. All
masks are read and checked before the first image is refined. While it runs, finished masks are kept in OUTPUT.partial;
OUTPUT appears whole at the end. Score it with tools/evaluate_masks.py.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=DETAILS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--masks", type=Path, required=True, metavar="DIR", help="folder of their masks, PNG")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder of refined masks")
    parser.add_argument("--suffix", default="", help="at the end of the masks' names, before .png (default: none)")
    add_refiner_arguments(parser)
    add_run_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Check everything, refine mask by mask, write the folder."""
    # heavy imports stay out of the way of --help
    from phoenix_d2.data.mask_folders import pair_masks
    from phoenix_d2.offline.journal import Journal
    from phoenix_d2.offline.mask_job import plan_mask_job, write_mask_folder
    from phoenix_d2.offline.run import run_job

    check_new_folder(args.output)
    pairs = pair_masks(args.images, args.masks, suffix=args.suffix)
    job = plan_mask_job(pairs)
    journal = Journal(args.output)
    outcomes = run_job(job, journal, partial(load_refiner, args), run_options(args))
    write_mask_folder(args.output, journal.folder / "masks", job, outcomes, pairs)
    journal.remove()
    print(f"{job.summary(outcomes)}\nwritten to {args.output}")


if __name__ == "__main__":
    main()
