#!/usr/bin/env python
"""Plot how time and memory of refining grow with the number of masks and with the size of the image."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from phoenix_d2.arguments import errors_in_words, positive_int

# benchmarks are not installed
sys.path.append(str(Path(__file__).parents[1]))

EXAMPLE = """\
examples:
  python benchmarks/growth.py --output output/growth
  python benchmarks/growth.py --output output/growth --masks 1 10 100 --megapixels 0.3 2

Discs in random images, refined once by phoenix_tiny's decoder, with random weights and a random embedding in the
encoder's place, without a gate. Each point is a process of its own, on one thread. Time is CPU time, which other work
on the machine disturbs least; on CUDA, time of a clock. It leaves out what the image costs whatever its masks. Memory
is by how much the peak exceeds what was in use before, less the refined masks themselves.
"""

# of the points where the image is what grows
_NUM_MASKS = 4


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="for growth.json and growth.png")
    parser.add_argument(
        "--masks", type=positive_int, nargs="+", default=[1, 3, 10, 30, 100, 300, 1000], metavar="N",
        help="in 480 x 640 pixels (default: 1 to 1000)",
    )  # fmt: skip
    parser.add_argument(
        "--megapixels", type=float, nargs="+", default=[0.3, 1, 3, 8, 24], metavar="M",
        help=f"with {_NUM_MASKS} masks (default: 0.3 to 24)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args(argv)
    if min(args.megapixels) <= 0:
        parser.error("--megapixels is positive")
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words(ImportError, RuntimeError):
        print(run(args))


def run(args: argparse.Namespace) -> str:
    """Measure point by point, write figures and plot, return a table of them."""
    import json
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from tqdm import tqdm

    from benchmarks.refine import measure
    from phoenix_d2.files import staged_folder
    from phoenix_d2.tables import format_table

    points = [("masks", n, n, (480, 640)) for n in args.masks]
    for megapixels in args.megapixels:
        height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
        points.append(("megapixels", megapixels, _NUM_MASKS, (height, round(height * 4 / 3))))
    rows = []
    for axis, value, num_masks, size in tqdm(points, unit="point", disable=None):
        # the peak memory of a process never falls
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            row = process.submit(
                measure, num_masks, passes=1, repeats=1, device=args.device, chunk_size=None, encoder="tiny", size=size
            ).result()
        row |= {"axis": axis, axis: value, "s": row["ms"] * num_masks / 1e3}
        rows.append({key: row[key] for key in ("axis", axis, "s", "outside_ms", "memory_MB")})
    with staged_folder(args.output) as folder:
        (folder / "growth.json").write_text(json.dumps(rows, indent=1))
        _plot(rows, folder / "growth.png")
    return format_table(rows, float_format=".2f")


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Time and memory over masks and megapixels, four panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    for column, (axis, label) in enumerate(
        [("masks", "masks, 480 x 640"), ("megapixels", f"megapixels, {_NUM_MASKS} masks")]
    ):
        points = [row for row in rows if row["axis"] == axis]
        for line, (key, unit) in enumerate([("s", "CPU seconds"), ("memory_MB", "MB above the masks")]):
            panel = figure.add_subplot(2, 2, 2 * line + column + 1)
            panel.plot([row[axis] for row in points], [row[key] for row in points], marker="o")
            panel.set(xlabel=label, ylabel=unit, xscale="log")
            if key == "s":
                panel.set_yscale("log")
            else:
                panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
