#!/usr/bin/env python
"""Refine semantic label maps: split into parts, refine the parts, merge them; every pixel keeps exactly one label."""

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
  pseudo-labels in the manner of PASCAL VOC, 0 for background and 255 for void:
    python tools/refine_semantic.py --images JPEGImages --input pseudo_labels --output refined --background 0
  what Detectron2's SemSegEvaluator wrote, where every label is a class:
    python tools/refine_semantic.py --images val2017 --input sem_seg_predictions.json --output refined
  go on after a run was killed:
    the same command with --resume

A folder holds one PNG an image, of the same name (subfolders too), one channel of 8 or 16 bits; palettes are kept.
Void pixels stay void. All input is checked before the first image is refined. An image that turns out damaged only
when it is read leaves its labels as they were and is named in the summary. While it runs, finished label maps are in
OUTPUT.partial, which becomes OUTPUT at the end.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=DETAILS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--input", type=Path, required=True, metavar="DIR|JSON", help="label maps")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder of refined PNGs")
    parser.add_argument(
        "--background", type=int, metavar="LABEL",
        help="a label that is no class: it is not refined, and gets what classes give up (VOC: 0; default: none)",
    )  # fmt: skip
    parser.add_argument("--void", type=int, default=255, metavar="LABEL", help="not refined, stays (default: 255)")
    add_refiner_arguments(parser, classical=False)
    add_run_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Check everything, refine image by image, name the folder."""
    # heavy imports stay out of the way of --help
    from phoenix_d2.offline.journal import Journal
    from phoenix_d2.offline.label_maps import name_folder, plan_label_maps, refine_label_maps, summary

    check_new_folder(args.output)
    tasks = plan_label_maps(args.input, image_folder=args.images, void=args.void)
    journal = Journal(args.output)
    options = run_options(args)
    outcomes = refine_label_maps(tasks, journal, partial(load_refiner, args), options, background=args.background)
    name_folder(journal, args.output)
    print(f"{summary(outcomes)}\nwritten to {args.output}")


if __name__ == "__main__":
    main()
