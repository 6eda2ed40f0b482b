#!/usr/bin/env python
"""Score semantic label maps: mean IoU, mean Boundary IoU and pixel accuracy, one row a folder or file."""

from __future__ import annotations

import argparse
from pathlib import Path

from phoenix_d2.arguments import errors_in_words

EXAMPLE = """\
example, before and after refinement:
  python tools/evaluate_semantic.py --truth SegmentationClass --results pseudo_labels refined

Figures are percentages. A result is a folder of PNGs named as those of the ground truth; what the ground truth has
no PNG for is not looked at. IoU is pooled over all images and averaged over the classes of the ground truth (mIoU);
mBIoU is the same of Boundary IoU, pAcc the share of pixels that are right. Void pixels of the ground truth do not
count.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--truth", type=Path, required=True, metavar="DIR", help="folder of right label maps")
    parser.add_argument("--results", type=Path, required=True, nargs="+", metavar="DIR", help="folders of label maps")
    parser.add_argument("--void", type=int, default=255, metavar="LABEL", help="without ground truth (default: 255)")
    parser.add_argument(
        "--subset", action="store_true", help="score the images that all results have, where they are only some"
    )
    parser.add_argument("--classes", action="store_true", help="also print the IoU of every class")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Score, print a table, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Read label map after label map, and print the table."""
    # heavy imports stay out of the way of --help
    from tabulate import tabulate
    from tqdm import tqdm

    from phoenix_d2.data.label_maps import read_label_map
    from phoenix_d2.evaluation.semantic import LabelMapEvaluator

    names = names_to_score(args)
    rows = []
    for folder in args.results:
        evaluator = LabelMapEvaluator(void=args.void)
        for name in tqdm(names, desc=folder.name, unit="image", disable=None):
            evaluator.add(read_label_map(folder / name), read_label_map(args.truth / name))
        row = {"": str(folder), **evaluator.scores()}
        rows.append(row | (evaluator.class_ious() if args.classes else {}))
    print(f"{len(names)} images\n\n{tabulate(rows, headers='keys', floatfmt='.1f')}")


def names_to_score(args: argparse.Namespace) -> list[Path]:
    """The PNGs to compare, relative to their folders."""
    in_folders = [
        {path.relative_to(folder) for path in folder.rglob("*.png")} for folder in (args.truth, *args.results)
    ]
    names = set.intersection(*in_folders)
    for folder, found in zip(args.results, in_folders[1:], strict=True):
        missing = sorted(in_folders[0] - found)
        if missing and not args.subset:
            raise ValueError(
                f"{folder} lacks {len(missing)} of the label maps of {args.truth}, such as {missing[0]}: pass "
                "--subset to score those that all have."
            )
    if not names:
        raise ValueError(f"{args.truth} and the results have no PNG in common: they must have the same names.")
    return sorted(names)


if __name__ == "__main__":
    main()
