#!/usr/bin/env python
"""Give LVIS annotations COCO's categories, to judge masks of COCO detectors by LVIS' finer outlines."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from phoenix_d2.arguments import check_output, errors_in_words

DETAILS = """\
examples:
  in the folder of DETECTRON2_DATASETS, for the dataset lvis_v1_val_cocofied:
    python tools/prepare_cocofied_lvis.py
  for pseudo-labels of some training images, of which subset.json is a COCO annotation file:
    python tools/prepare_cocofied_lvis.py --lvis lvis_v1_train.json --coco subset.json --output subset_lvis.json
  then:
    python tools/evaluate_json.py --style lvis --annotations lvis_v1_val_cocofied.json \\
        --results coco_instances_results.json refined.json

Kept are images that both files have, and objects of those LVIS categories that are COCO's by their synset.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=DETAILS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, default, help_text in (
        ("--lvis", "lvis/lvis_v1_val.json", "annotations as LVIS publishes them"),
        ("--coco", "coco/annotations/instances_val2017.json", "COCO file of the images to keep"),
        ("--output", "lvis/lvis_v1_val_cocofied.json", "to write"),
    ):
        parser.add_argument(
            option, type=Path, default=root / default, metavar="JSON",
            help=f"{help_text} (default: {default} in DETECTRON2_DATASETS)",
        )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Convert, and say in a line what went wrong."""
    args = parse_args(argv)
    # heavy imports stay out of the way of --help
    from phoenix_d2.data.cocofied_lvis import cocofy
    from phoenix_d2.data.mask_json import load_annotations, write_json_atomically

    with errors_in_words():
        check_output(args.output, [args.lvis, args.coco])
        cocofied = cocofy(load_annotations(args.lvis), load_annotations(args.coco))
        write_json_atomically(args.output, cocofied)
    counts = ", ".join(f"{len(cocofied[key])} {key}" for key in ("images", "annotations", "categories"))
    print(f"{counts}, written to {args.output}")


if __name__ == "__main__":
    main()
