#!/usr/bin/env python
"""Make coarse masks of an annotation file's, to measure a refiner with.

python tools/degrade_json.py --annotations gt.json --output coarse.json --kind mask_head --strength 0.5
python tools/evaluate_json.py --annotations gt.json --results coarse.json refined.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_KINDS = """Kinds, from strength 0 to 1:
  mask_head      squeezed through the grid of a detector's mask head, 56 x 56 to 7 x 7 (28 x 28 at 1/3)
  polygon        contours as polygons of few vertices, tolerance 0.2 % to 2 % of the perimeter
  morphological  rough contours, blobs, dilated and eroded patches, down to an IoU of 0.9 to 0.5"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_KINDS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="ground truth, COCO or LVIS")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="JSON", help="results to write; records carry gt_id"
    )
    parser.add_argument("--kind", default="mask_head", help="see below (default: mask_head)")
    parser.add_argument("--strength", type=float, default=0.5, help="from 0 to 1 (default: 0.5)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Degrade and write, and say in a line what went wrong."""
    args = parse_args(argv)
    # heavy imports stay out of the way of --help
    from phoenix_d2.data.degrade import degrade_annotations
    from phoenix_d2.data.mask_json import load_annotations, write_json_atomically

    try:
        annotations = load_annotations(args.annotations)
        results = degrade_annotations(annotations, kind=args.kind, strength=args.strength, seed=args.seed)
        write_json_atomically(args.output, results)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"Wrote {len(results)} masks to {args.output}.")


if __name__ == "__main__":
    main()
