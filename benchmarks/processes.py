#!/usr/bin/env python
"""Measure what a second process brings: refine_json.py with one worker and with several, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from phoenix_d2.arguments import errors_in_words

EXAMPLE = """\
examples:
  python benchmarks/processes.py --output output/processes.json
  python benchmarks/processes.py --output output/processes.json --images 20 --num-workers 4

Drawn images of 480 x 640 pixels, the same for the same --images; each process has one thread. "wall" is what a clock
shows, and says little on a machine that does other work. "free cores" is what CPU seconds, which other work disturbs
least, come to on as many idle cores: the start, which is a run over one image, and all the rest in equal parts, as
workers that take image after image, those of most masks first, end within the time of one small image.
"""

_SIZE = (480, 640)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="JSON", help="for the figures")
    parser.add_argument("--images", type=int, default=60, metavar="N", help="default: 60")
    parser.add_argument("--num-workers", type=int, default=2, metavar="N", help="besides one (default: 2)")
    args = parser.parse_args(argv)
    if args.images < args.num_workers or args.num_workers < 2:
        parser.error(f"expected at least 2 workers and as many images, got {args.num_workers} and {args.images}")
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words(ImportError):
        print(run(args))


def run(args: argparse.Namespace) -> str:
    """Measure one worker, several, and the start, write the figures, return a table and a sentence."""
    import os
    from tempfile import TemporaryDirectory

    from phoenix_d2.data.datasets.drawn import draw_dataset
    from phoenix_d2.data.mask_json import write_json_atomically
    from phoenix_d2.tables import format_table

    # inherited by the processes that are measured
    os.environ["OMP_NUM_THREADS"] = "1"
    with TemporaryDirectory() as folder:
        few = draw_dataset(Path(folder, "few"), num_images=1, image_size=_SIZE)
        many = draw_dataset(Path(folder, "many"), num_images=args.images, image_size=_SIZE)
        start = _in_new_process(few.annotation_file, few.image_folder, 1)["CPU_s"]
        rows = [
            {"workers": n, **_in_new_process(many.annotation_file, many.image_folder, n)} for n in (1, args.num_workers)
        ]
    for row in rows:
        row["free_cores_s"] = start + (row["CPU_s"] - start) / row["workers"]
    one, several = rows
    figures = {
        "start_s": start,
        "runs": rows,
        "speed_up": {key: one[key] / several[key] for key in ("wall_s", "free_cores_s")},
    }
    write_json_atomically(args.output, figures)
    speed_up = ", ".join(f"{value:.2f} ({key})" for key, value in figures["speed_up"].items())
    return (
        f"{format_table(rows, float_format='.2f')}\n\nStart {start:.2f} CPU s; {args.num_workers} workers are faster "
        f"than one by {speed_up}."
    )


def _in_new_process(annotation_file: Path, image_folder: Path, num_workers: int) -> dict[str, Any]:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # what a process has imported, the next need not import
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, annotation_file, image_folder, num_workers).result()


def measure(annotation_file: Path, image_folder: Path, num_workers: int) -> dict[str, Any]:
    """Seconds of a run of refine_json.py in this process, which should be new, and the workers that it starts."""
    import resource
    import runpy
    from tempfile import TemporaryDirectory
    from time import perf_counter, process_time

    tool = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "refine_json.py"))
    began = perf_counter()
    with TemporaryDirectory() as folder:
        arguments = {
            "--images": image_folder,
            "--input": annotation_file,
            "--output": Path(folder, "refined.json"),
            "--num-workers": num_workers,
        }
        tool["main"]([str(part) for pair in arguments.items() for part in pair])
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    others = children.ru_utime + children.ru_stime
    return {
        "wall_s": perf_counter() - began,
        "CPU_s": process_time() + others,
        "CPU_of_others_s": others,
    }


if __name__ == "__main__":
    main()
