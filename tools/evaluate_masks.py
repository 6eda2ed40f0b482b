#!/usr/bin/env python
"""Score folders of PNG masks against their targets, before and after refinement, one row a set."""

from __future__ import annotations

import argparse
from pathlib import Path

from phoenix_d2.arguments import errors_in_words

EXAMPLE = """\
examples:
  one set, before and after refinement:
    python tools/evaluate_masks.py --targets DIS5K/DIS-VD/gt --before isnet/DIS-VD --after refined/DIS-VD
  several sets in one table:
    python tools/evaluate_masks.py --targets DIS5K/DIS-{VD,TE1,TE2,TE3,TE4}/gt \\
        --before isnet/DIS-{VD,TE1,TE2,TE3,TE4} --after refined/DIS-{VD,TE1,TE2,TE3,TE4}
  skin lesions:
    python tools/evaluate_masks.py --suffix _segmentation --metrics IoU Dice \\
        --targets ISIC2018/ISIC2018_Task1_Test_GroundTruth --before unet --after refined

Masks have the names of their targets. Figures are percentages: IoU and Dice (F1 of pixels) are means over masks, IoU
pooled is the sum of intersections over the sum of unions, boundary F is that of DAVIS (tolerance 0.8 % of the image
diagonal), mBA the mean boundary accuracy of CascadePSP.
"""
METRICS = ("IoU", "IoU pooled", "boundary F", "mBA", "Dice")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, what in (("targets", "right masks"), ("before", "coarse masks"), ("after", "refined masks")):
        parser.add_argument(
            f"--{name}", type=Path, nargs="+", metavar="DIR", required=name != "after",
            help=f"folders of {what}, one a set",
        )  # fmt: skip
    parser.add_argument(
        "--suffix", default="", help="at the end of the targets' names, which those of the others may lack"
    )
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS), help="columns (default: all)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = parser.parse_args(argv)
    for name in ("before", "after"):
        folders = getattr(args, name)
        if folders and len(folders) != len(args.targets):
            parser.error(f"--{name} has {len(folders)} folder(s) for {len(args.targets)} of --targets: give one each.")
    return args


def main(argv: list[str] | None = None) -> None:
    """Score, print a table, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Score folder by folder, print the table."""
    # heavy imports stay out of the way of --help
    from phoenix_d2.evaluation.binary_masks import average, score_folder, summarise
    from phoenix_d2.tables import scores_table

    names = set_names(args.targets)
    columns = {label: folders for label, folders in (("before", args.before), ("after", args.after)) if folders}
    scores = {
        label: [
            summarise(score_folder(targets, folder, suffix=args.suffix, bar=f"{name} {label}"))
            for name, targets, folder in zip(names, args.targets, folders, strict=True)
        ]
        for label, folders in columns.items()
    }
    if len(names) > 1:
        names = [*names, "average"]
        scores = {label: [*sets, average(sets)] for label, sets in scores.items()}
    table = {
        name: {f"{metric} {label}": sets[row][metric] for metric in args.metrics for label, sets in scores.items()}
        for row, name in enumerate(names)
    }
    print(scores_table(table, markdown=args.markdown))


def set_names(folders: list[Path]) -> list[str]:
    """Names of data sets: those parts of their folders' paths that are not the same in all."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise ValueError(f"--targets names a folder twice: {' '.join(map(str, folders))}.")
    if len(parts) == 1:
        return [folders[0].name]
    if len(set(map(len, parts))) > 1:
        return list(map(str, folders))
    differ = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    return ["/".join(part for part, differs in zip(path, differ, strict=True) if differs) for path in parts]


if __name__ == "__main__":
    main()
