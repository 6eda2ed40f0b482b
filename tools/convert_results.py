#!/usr/bin/env python
"""Turn what a detector outside Detectron2 wrote into COCO results, which refine_json.py and evaluate_json.py read."""

from __future__ import annotations

import argparse
from pathlib import Path

from phoenix_d2.arguments import check_output, errors_in_words

DETAILS = """\
examples:
  YOLO, `yolo segment val save_json=True`; its classes are counted from 1 (older versions: from 0):
    python tools/convert_results.py --format ultralytics --input runs/segment/val/predictions.json \\
        --annotations instances.json --first-label 1 --output results.json
  torchvision, {file name: output} saved by torch.save; labels of its COCO models are COCO's category ids:
    python tools/convert_results.py --format torchvision --input outputs.pth \\
        --annotations instances.json --output results.json
  PNGs, one an image, in which each value but 0 is an instance, or a folder an image with several such files:
    python tools/convert_results.py --format masks --input masks --annotations instances.json --output results.json

mmdetection's *.segm.json (format_only=True) are COCO results as they are. Images are found by the names of their files
in the annotation file, which lists them; it needs no annotations.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=DETAILS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("ultralytics", "torchvision", "masks"), required=True)
    parser.add_argument("--input", type=Path, required=True, metavar="PATH", help="what the detector wrote")
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="JSON", help="file that lists images and categories"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="JSON", help="COCO results")
    parser.add_argument(
        "--first-label", type=int, metavar="N",
        help="labels count the categories, in the order of their ids, from N (default: they are category ids)",
    )  # fmt: skip
    parser.add_argument(
        "--category", type=int, metavar="ID", help="category id of masks (default: the only one that there is)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Convert, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Read and check everything, then write."""
    # heavy imports stay out of the way of --help
    from phoenix_d2.data.detector_results import convert_results
    from phoenix_d2.data.mask_json import load_annotations, write_json_atomically

    check_output(args.output, (args.input, args.annotations))
    results = convert_results(
        args.format,
        args.input,
        load_annotations(args.annotations),
        first_label=args.first_label,
        category_id=args.category,
    )
    write_json_atomically(args.output, results)
    print(f"{len(results)} masks of {len({each['image_id'] for each in results})} images written to {args.output}")


if __name__ == "__main__":
    main()
