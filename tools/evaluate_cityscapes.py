#!/usr/bin/env python
"""Score instance masks on Cityscapes: COCO's AP and boundary AP, and the benchmark's own AP; one row a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from phoenix_d2.arguments import errors_in_words

EXAMPLE = """\
example, before and after refinement (paper Table 7a):
  python tools/evaluate_cityscapes.py --root datasets/cityscapes --split val --annotations instances_val.json \\
      --results results.json refined.json

--annotations is what tools/prepare_cityscapes.py wrote. Figures are percentages; CityAP and CityAP50 are those of
Cityscapes' own scripts (pip install cityscapesscripts), the others COCO's, and bAP boundary AP.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="holds gtFine/")
    parser.add_argument("--split", default="val", help="folder in gtFine/ (default: val)")
    parser.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="COCO-style, of that split")
    parser.add_argument("--results", type=Path, required=True, nargs="+", metavar="JSON", help="COCO results files")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Score, print a table, and say in a line what went wrong."""
    args = parse_args(argv)
    # heavy imports stay out of the way of --help
    from phoenix_d2.tables import scores_table

    with errors_in_words():
        scores = evaluate(args)
    print(scores_table(scores, markdown=args.markdown))


def evaluate(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Read and check every file, then score them one by one."""
    from tqdm import tqdm

    from phoenix_d2.data.mask_json import load_annotations, load_results
    from phoenix_d2.evaluation.cityscapes import evaluate_cityscapes
    from phoenix_d2.evaluation.instance_masks import evaluate_masks

    annotations = load_annotations(args.annotations)
    results: dict[str, Any] = {
        str(path): load_results(path, annotations=annotations, check_categories=True) for path in args.results
    }
    gt_dir = args.root / "gtFine" / args.split
    scores = {}
    for name, records in tqdm(results.items(), unit="file", disable=None):
        coco = evaluate_masks(annotations, records)
        own = evaluate_cityscapes(annotations, records, gt_dir=gt_dir)
        scores[name] = {
            "AP": coco["segm"]["AP"],
            "AP50": coco["segm"]["AP50"],
            "bAP": coco["boundary"]["AP"],
            **{f"City{metric}": value for metric, value in own.items()},
        }
    return scores


if __name__ == "__main__":
    main()
