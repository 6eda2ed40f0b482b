#!/usr/bin/env python
"""Make a COCO-style annotation file of Cityscapes' instances, which the other tools read."""

from __future__ import annotations

import argparse
from pathlib import Path

from phoenix_d2.arguments import errors_in_words

EXAMPLE = """\
example:
  python tools/prepare_cityscapes.py --root datasets/cityscapes --split val --output instances_val.json
  python tools/refine_json.py --images datasets/cityscapes/leftImg8bit/val --annotations instances_val.json \\
      --input results.json --output refined.json
  python tools/evaluate_cityscapes.py --root datasets/cityscapes --split val --annotations instances_val.json \\
      --results results.json refined.json

Results are COCO-style records with the image ids of this file and Cityscapes' label ids (24 person ... 33 bicycle).
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="holds gtFine/ and leftImg8bit/")
    parser.add_argument("--split", default="val", help="folder in both (default: val)")
    parser.add_argument("--output", type=Path, required=True, metavar="JSON", help="annotation file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Read, write, and say in a line what went wrong."""
    args = parse_args(argv)
    # heavy imports stay out of the way of --help
    from tqdm import tqdm

    from phoenix_d2.data.datasets.cityscapes import cityscapes_annotations
    from phoenix_d2.data.mask_json import write_json_atomically

    with errors_in_words():
        data = cityscapes_annotations(
            args.root, args.split, progress=lambda files: tqdm(files, unit="image", disable=None)
        )
        write_json_atomically(args.output, data)
    print(f"Wrote {len(data['annotations'])} instances in {len(data['images'])} images to {args.output}.")


if __name__ == "__main__":
    main()
