#!/usr/bin/env python
"""Make training pictures with exact outlines: photographs with cut-out objects and drawn shapes laid over them.

python tools/compose_dataset.py --sources my/train --output my/train_composed --num-images 800
"""

from __future__ import annotations

import argparse
from pathlib import Path

from phoenix_d2.arguments import errors_in_words, positive_int, seed


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sources", type=Path, nargs="+", required=True, metavar="DIR", help="folders of images/ and instances.json"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="new folder; a name for DATASETS.TRAIN afterwards"
    )
    parser.add_argument("--num-images", type=positive_int, default=400, metavar="N", help="default: 400")
    parser.add_argument("--seed", type=seed, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Compose, and say in a line what went wrong."""
    args = parse_args(argv)
    # heavy imports stay out of the way of --help
    from phoenix_d2.data.datasets.composed import compose_dataset

    with errors_in_words():
        compose_dataset(args.output, args.sources, num_images=args.num_images, seed=args.seed)
    print(f"Wrote {args.num_images} pictures to {args.output}.")


if __name__ == "__main__":
    main()
