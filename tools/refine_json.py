#!/usr/bin/env python
"""Refine the masks of a results or annotation JSON: the same records in the same order, with better masks."""

from __future__ import annotations

import argparse
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
  a detector's results:
    python tools/refine_json.py --images val2017 --input coco_instances_results.json \\
        --annotations instances_val2017.json --output refined.json
  annotations, with options from a config, on two processes:
    python tools/refine_json.py --config phoenix_tiny.yaml --weights model_final.pth --num-workers 2 \\
        --images images --input instances.json --output refined.json MODEL.REFINER.ZOOM_BELOW 0.5
  the masks of 50 images first, to be judged with evaluate_json.py --common-images and seen with draw_json.py:
    the same command with --max-images 50 and an --output of its own
  by a baseline that Phoenix is compared with:
    python tools/refine_json.py --refiner grabcut --images images --input instances.json --output refined.json
  go on after a run was killed:
    the same command with --resume
  pseudo-labels of a whole training split, on eight machines that share a file system:
    the same command with --shard 1/8 on the first, ... and --shard 8/8 on the last; once all have ended, with
    --resume on any one of them, which refines what is missing, if anything, and writes the output

Only "segmentation" changes, to compressed RLE whatever it was; with --update-boxes also "bbox" and "area" of
refined masks, where a record has them. Crowds, empty masks and masks that the refiner would erase stay as they
were. All input is checked before the first image is refined. An image that turns out damaged only when it is
read leaves its masks as they were, is named in the summary, and does not change the exit status; where a shard could
not read one, --resume tries again.

While it runs, finished images are kept in OUTPUT.partial, a folder beside the output. --resume goes on with them
on any number of workers and machines and yields the same file. Shards only ever add files of their own to that
folder, and refuse to go on with the images of another command. On a CPU, the last bits of sums depend on the
threads of a worker, by default the cores divided by the workers: set OMP_NUM_THREADS, the threads of each, for the
same bytes with another number of workers. On a GPU, sums of colours may differ in their last bits anyway.
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
    parser.add_argument("--update-boxes", action="store_true", help="let boxes and areas follow the masks")
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
    """Check everything, refine image by image, write the output."""
    # heavy imports stay out of the way of --help
    from phoenix_d2.data.mask_json import write_json_atomically
    from phoenix_d2.offline.job import plan_job
    from phoenix_d2.offline.journal import Journal
    from phoenix_d2.offline.run import run_job

    check_output(args.output, (args.input, args.annotations))
    job = plan_job(
        args.input,
        image_folder=args.images,
        annotation_file=args.annotations,
        skip_invalid=args.skip_invalid,
        max_images=args.max_images,
    )
    journal = Journal(args.output, shard=args.shard)
    options = run_options(args, update_boxes=args.update_boxes)
    outcomes = run_job(job, journal, partial(load_refiner, args), options)
    if args.shard != (1, 1):
        print(job.progress(outcomes))
        return
    write_json_atomically(args.output, job.finished(outcomes))
    journal.remove()
    print(f"{job.summary(outcomes)}\nwritten to {args.output}")


if __name__ == "__main__":
    main()
