#!/usr/bin/env python
"""Clean an annotation file: the same records with better masks, a verdict on each, and a report to look at."""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path

from phoenix_d2.arguments import (
    add_job_arguments,
    add_refiner_arguments,
    add_run_arguments,
    add_shard_argument,
    check_output,
    errors_in_words,
    load_refiner,
    run_options,
)

DETAILS = """\
examples:
  only what the gate expects to be better:
    python tools/clean_annotations.py --images val2017 --input instances_val2017.json --output cleaned.json
  the same on 50 images first, to see what becomes of them:
    the same command with --max-images 50 and an --output of its own
  all masks, where you know that yours are poor, on four processes:
    python tools/clean_annotations.py --images images --input instances.json --output cleaned.json \\
        --gate off --num-workers 4
  go on after a run was killed:
    the same command with --resume
  on two machines that share a file system:
    the same command with --shard 1/2 on one and --shard 2/2 on the other; once both have ended, with --resume

Three files are written, all or none: OUTPUT, and beside it its verdicts (.verdicts.jsonl, a line an annotation in the
file's order: refined, unchanged, rejected by the gate, vanished, small, empty, unreadable, invalid or crowd, the IoU
with the original mask, and the gain that the gate predicts), and a report (.report.html, one file that needs no
network) with counts by category, a histogram of those IoUs and the largest changes.

Records, their order, ids and all keys stay. Where a mask changed, "segmentation" does, in the form that it had
(polygons, plain or compressed RLE), and "area" and "bbox" do where a record has them; all other records are as they
were. Crowds are never touched. COCO polygons have no holes: one is cut out by a bridge of no width to the outline
around it, which pycocotools and all that fill by the even-odd rule decode to the hole. Polygons that decode to less
than 99 % IoU with their mask are drawn finer.

While it runs, finished images are kept in OUTPUT.partial, a folder beside the output.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=DETAILS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--input", type=Path, required=True, metavar="JSON", help="COCO or LVIS annotations")
    parser.add_argument("--output", type=Path, required=True, metavar="JSON", help="written whole at the end")
    parser.add_argument(
        "--tolerance", type=_tolerance, default=0.5, metavar="PIXELS",
        help="how far a polygon may lie from the outline of its mask; 0 keeps every corner (default: 0.5)",
    )  # fmt: skip
    add_job_arguments(parser)
    add_refiner_arguments(parser)
    add_run_arguments(parser)
    add_shard_argument(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Check everything, refine image by image, write the three files."""
    # heavy imports stay out of the way of --help
    from phoenix_d2.offline.clean import plan_cleaning, report_file, verdict_file, write_cleaned
    from phoenix_d2.offline.journal import Journal
    from phoenix_d2.offline.run import run_job

    for path in (args.output, verdict_file(args.output), report_file(args.output)):
        check_output(path, [args.input])
    job = plan_cleaning(
        args.input, image_folder=args.images, skip_invalid=args.skip_invalid, max_images=args.max_images
    )
    journal = Journal(args.output, shard=args.shard)
    outcomes = run_job(job, journal, partial(load_refiner, args), run_options(args, update_boxes=True))
    if args.shard != (1, 1):
        print(job.progress(outcomes))
        return
    summary = write_cleaned(job, outcomes, args.output, tolerance=args.tolerance)
    journal.remove()
    print(f"{summary}\nwritten to {args.output}, {verdict_file(args.output).name} and {report_file(args.output).name}")


def _tolerance(text: str) -> float:
    value = float(text)
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"expected at least 0 pixels, got {text}")
    return value


if __name__ == "__main__":
    main()
