#!/usr/bin/env python
"""Score mask files: mask AP and boundary AP, one row a file, and mean IoU where results carry `gt_id`."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

EXAMPLE = """\
example, before and after refinement:
  python tools/evaluate_json.py --annotations instances.json --results coarse.json refined.json

Figures are percentages. bAP is boundary AP, bIoU the mean Boundary IoU; IoU and bIoU are means over the
results whose 'gt_id' names an annotation.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="ground truth, COCO or LVIS")
    parser.add_argument("--results", type=Path, required=True, nargs="+", metavar="JSON", help="COCO results files")
    parser.add_argument("--style", choices=["coco", "lvis"], default="coco", help="protocol (default: coco)")
    parser.add_argument("--class-agnostic", action="store_true", help="count all categories as one")
    parser.add_argument(
        "--dilation-ratio",
        type=_positive,
        default=0.02,
        metavar="R",
        help="boundary band width as a share of the image diagonal (default: 0.02)",
    )
    parser.add_argument("--output", type=Path, metavar="JSON", help="write the scores to this file too")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Score, print a table, and say in a line what went wrong."""
    args = parse_args(argv)
    # heavy imports stay out of the way of --help
    from phoenix_d2.data.mask_json import write_json_atomically
    from phoenix_d2.evaluation.instance_masks import scores_table

    try:
        scores = evaluate(args)
        if args.output:
            write_json_atomically(args.output, without_nan(scores))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(scores_table(rows(scores["files"]), markdown=args.markdown))
    print(
        f"\nThe boundary band is {100 * args.dilation_ratio:g} % of the image diagonal wide; "
        f"for {scores['saturated']:.1f} % of the ground truth it is the whole mask."
    )


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Read and check every file, then score them one by one."""
    from dataclasses import asdict

    from tqdm import tqdm

    from phoenix_d2.data.mask_json import load_annotations, load_results
    from phoenix_d2.evaluation.instance_masks import evaluate_masks, paired_iou, saturated_share

    annotations = load_annotations(args.annotations)
    results = {
        str(path): load_results(path, annotations=annotations, check_categories=not args.class_agnostic)
        for path in args.results
    }
    files: dict[str, Any] = {}
    for name, records in (progress := tqdm(results.items(), unit="file", disable=None)):
        progress.set_postfix_str(f"{name}, {len(records)} masks")
        files[name] = evaluate_masks(
            annotations,
            records,
            style=args.style,
            class_agnostic=args.class_agnostic,
            dilation_ratio=args.dilation_ratio,
        )
        if pairs := paired_iou(annotations, records, dilation_ratio=args.dilation_ratio):
            files[name]["paired"] = asdict(pairs)
    return {
        "annotations": str(args.annotations),
        "style": args.style,
        "class_agnostic": args.class_agnostic,
        "dilation_ratio": args.dilation_ratio,
        "saturated": saturated_share(annotations, dilation_ratio=args.dilation_ratio),
        "files": files,
    }


def rows(files: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The table: a row of figures by file, named without folder and ending where that is enough."""
    stems = [Path(name).stem for name in files]
    names = stems if len(set(stems)) == len(stems) else list(files)
    return {name: row(file) for name, file in zip(names, files.values(), strict=True)}


def row(file: dict[str, dict[str, float]]) -> dict[str, float]:
    """The figures of one file."""
    figures = {**file["segm"], **{f"b{metric}": value for metric, value in file["boundary"].items()}}
    if "paired" in file:
        figures |= {"IoU": file["paired"]["iou"], "bIoU": file["paired"]["boundary_iou"]}
    return figures


def without_nan(value: Any) -> Any:
    """The same scores, null for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, got {text}")
    return value


if __name__ == "__main__":
    main()
