#!/usr/bin/env python
"""Write ground-truth prompts, points and boxes of the right masks, into a results file (paper Table 5b)."""

from __future__ import annotations

import argparse
from pathlib import Path

from phoenix_d2.arguments import check_output, errors_in_words

EXAMPLE = """\
example:
  python tools/add_cues.py --annotations gt.json --input coarse.json --output with_box.json --cues box
  python tools/refine_json.py --images val2017 --annotations gt.json --input with_box.json --output refined.json

Every record needs 'gt_id', the annotation that it is a prediction of (tools/degrade_json.py writes it). The cues are
the keys that refine_json.py reads, "point_coords", "point_labels" and "prompt_box": docs/tasks/visual_cues.md.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="ground truth, COCO or LVIS")
    parser.add_argument("--input", type=Path, required=True, metavar="JSON", help="results whose records have gt_id")
    parser.add_argument("--output", type=Path, required=True, metavar="JSON", help="results with cues")
    parser.add_argument("--cues", nargs="+", choices=("point", "box"), default=["point", "box"], help="default: both")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read, write, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Check both files, and write the third."""
    # heavy imports stay out of the way of --help
    from phoenix_d2.data.mask_json import load_annotations, load_results, write_json_atomically
    from phoenix_d2.data.true_cues import add_true_cues

    check_output(args.output, (args.annotations, args.input))
    annotations = load_annotations(args.annotations)
    results = load_results(args.input, annotations=annotations)
    write_json_atomically(args.output, add_true_cues(results, annotations, kinds=args.cues, source=args.input))
    print(f"Wrote {len(results)} masks with {' and '.join(args.cues)} to {args.output}.")


if __name__ == "__main__":
    main()
