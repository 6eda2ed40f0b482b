#!/usr/bin/env python
"""Average the weights of refiners that were trained from one another, as a decoder before and after Phoenix training.

    python tools/average_weights.py --weights pretrained.pth phoenix.pth --shares 3/4 1/4 --output averaged.safetensors

Options and input size are those of the last one. A gate has to be calibrated for the result: tools/calibrate_gate.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from phoenix_d2.arguments import check_output, errors_in_words, strength


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", required=True, metavar="FILE", help="files of refiners, or their names")
    parser.add_argument("--shares", nargs="+", type=strength, metavar="S", help="one each (default: equal ones)")
    parser.add_argument("--output", type=Path, required=True, metavar="SAFETENSORS", help="the averaged refiner")
    args = parser.parse_args(argv)
    if args.output.suffix != ".safetensors":
        parser.error(f"--output {args.output}: expected a name that ends in .safetensors")
    args.shares = args.shares or [1 / len(args.weights)] * len(args.weights)
    return args


def main(argv: list[str] | None = None) -> None:
    """Average, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words():
        # heavy imports stay out of the way of --help
        from phoenix_d2.sam.averaging import average_weights
        from phoenix_d2.sam.checkpoint import save_refiner
        from phoenix_d2.sam.pretrained import load_pretrained

        check_output(args.output, map(Path, args.weights))
        save_refiner(average_weights([load_pretrained(path) for path in args.weights], args.shares), args.output)
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
