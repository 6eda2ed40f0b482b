#!/usr/bin/env python
"""Score mask files: mask AP and boundary AP, one row a file, and mean IoU where results carry `gt_id`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phoenix_d2.arguments import check_output, errors_in_words

if TYPE_CHECKING:
    from phoenix_d2.data.mask_json import Record

EXAMPLE = """\
example, before and after refinement:
  python tools/evaluate_json.py --annotations instances.json --results coarse.json refined.json
COCO detectors judged by LVIS (see tools/prepare_cocofied_lvis.py):
  python tools/evaluate_json.py --style lvis --annotations lvis_v1_val_cocofied.json \\
      --results coco_instances_results.json refined.json

Figures are percentages. bAP is boundary AP, bIoU the mean Boundary IoU; IoU and bIoU are means over the
results whose 'gt_id' names an annotation. Pseudo-labels may be an annotation file, each with the score that it
carries, else 1. In LVIS style, results on images and of categories that the annotation file lacks do not count,
as LVIS says nothing of them.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="ground truth, COCO or LVIS")
    parser.add_argument(
        "--results", type=Path, required=True, nargs="+", metavar="JSON", help="results, or annotation files"
    )
    parser.add_argument("--style", choices=["coco", "lvis"], default="coco", help="protocol (default: coco)")
    parser.add_argument("--class-agnostic", action="store_true", help="count all categories as one")
    parser.add_argument(
        "--dilation-ratio",
        type=_positive,
        default=0.02,
        metavar="R",
        help="boundary band width as a share of the image diagonal (default: 0.02)",
    )
    parser.add_argument(
        "--common-images",
        action="store_true",
        help="judge only on images that every results file has masks on, as after refine_json.py --max-images",
    )
    parser.add_argument("--output", type=Path, metavar="JSON", help="write the scores to this file too")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Score, print a table, and say in a line what went wrong."""
    args = parse_args(argv)
    # heavy imports stay out of the way of --help
    from phoenix_d2.data.mask_json import write_json_atomically
    from phoenix_d2.tables import scores_table, without_nan

    with errors_in_words():
        if args.output:
            check_output(args.output, [args.annotations, *args.results])
        scores = evaluate(args)
        if not scores["objects"]:
            where = "On the images that count, " if args.common_images else ""
            raise ValueError(
                f"{where}{args.annotations} holds no objects but crowds: there is nothing to score against."
            )
        if args.output:
            write_json_atomically(args.output, without_nan(scores))
    print(scores_table(rows(scores["files"]), markdown=args.markdown))
    print()
    if unpaired := [name for name, file in scores["files"].items() if "paired" not in file]:
        print(f"No IoU of {', '.join(unpaired)}: no record says in 'gt_id' which annotation it shows.")
    for name, file in scores["files"].items():
        if file["left_out"]:
            print(f"Not judged: {file['left_out']} results of {name}, on other images or of other categories.")
    print(
        f"The boundary band is {100 * args.dilation_ratio:g} % of the image diagonal wide; "
        f"for {scores['saturated']:.1f} % of the ground truth it is the whole mask."
    )


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Read and check every file, then score them one by one."""
    from dataclasses import asdict

    from tqdm import tqdm

    from phoenix_d2.data.mask_json import load_annotations, only_images
    from phoenix_d2.evaluation.instance_masks import evaluate_masks, paired_iou, saturated_share

    annotations = load_annotations(args.annotations, check_categories=not args.class_agnostic)
    predictions = {str(path): load_predictions(path, annotations, args) for path in args.results}
    if args.common_images:
        images = set.intersection(*({record["image_id"] for record in records} for records, _ in predictions.values()))
        if not images:
            raise ValueError(f"No image has masks in all of {', '.join(predictions)}: omit --common-images.")
        known = {category["id"] for category in annotations["categories"]}
        annotations = only_images(annotations, images)
        for name, (records, num_left_out) in predictions.items():
            common = [record for record in records if record["image_id"] in images]
            # those of other categories are counted already
            num_judged = sum(args.style == "coco" or record["category_id"] in known for record in records)
            num_common = sum(args.style == "coco" or record["category_id"] in known for record in common)
            predictions[name] = common, num_left_out + num_judged - num_common
    files: dict[str, Any] = {}
    for name, (records, num_left_out) in (progress := tqdm(predictions.items(), unit="file", disable=None)):
        progress.set_postfix_str(f"{name}, {len(records)} masks")
        files[name] = evaluate_masks(
            annotations,
            records,
            style=args.style,
            class_agnostic=args.class_agnostic,
            dilation_ratio=args.dilation_ratio,
        )
        files[name]["left_out"] = num_left_out
        if pairs := paired_iou(annotations, records, dilation_ratio=args.dilation_ratio):
            files[name]["paired"] = asdict(pairs)
    return {
        "annotations": str(args.annotations),
        "style": args.style,
        "class_agnostic": args.class_agnostic,
        "dilation_ratio": args.dilation_ratio,
        "objects": sum(not annotation.get("iscrowd", 0) for annotation in annotations["annotations"]),
        "saturated": saturated_share(annotations, dilation_ratio=args.dilation_ratio),
        "files": files,
    }


def load_predictions(path: Path, annotations: Record, args: argparse.Namespace) -> tuple[list[Record], int]:
    """The checked masks of a results or annotation file, and how many of its masks are not judged."""
    from phoenix_d2.data.mask_json import as_results, check_results, read_json

    records = as_results(read_json(path), source=path)
    if args.style == "coco":
        check_results(records, source=path, annotations=annotations, check_categories=not args.class_agnostic)
        return records, 0
    check_results(records, source=path)
    images, categories = ({item["id"] for item in annotations[key]} for key in ("images", "categories"))
    on_images = [record for record in records if record["image_id"] in images]
    # other categories stay, since they count among the best results of an image, of which LVIS takes 300
    num_judged = sum(record["category_id"] in categories for record in on_images)
    if num_judged:
        check_results(on_images, source=path, annotations=annotations)
        return on_images, len(records) - num_judged
    # not one mask to judge: the check says what is wrong with the file, unless it is empty
    check_results(records, source=path, annotations=annotations, check_categories=True)
    return records, 0


def rows(files: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The table: a row of figures by file, named without folder and ending where that is enough."""
    stems = [Path(name).stem for name in files]
    names = stems if len(set(stems)) == len(stems) else list(files)
    return {name: row(file) for name, file in zip(names, files.values(), strict=True)}


def row(file: dict[str, Any]) -> dict[str, float]:
    """The figures of one file."""
    figures = {**file["segm"], **{f"b{metric}": value for metric, value in file["boundary"].items()}}
    if "paired" in file:
        figures |= {"IoU": file["paired"]["iou"], "bIoU": file["paired"]["boundary_iou"]}
    return figures


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, got {text}")
    return value


if __name__ == "__main__":
    main()
