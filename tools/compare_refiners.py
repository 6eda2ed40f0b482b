#!/usr/bin/env python
"""Compare refiners: every one on every input, mask by mask, with the same measures; one table, JSON and plot."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from phoenix_d2.arguments import (
    add_attack_arguments,
    add_cache_arguments,
    add_device_argument,
    errors_in_words,
    load_attack,
    positive_int,
    seed,
    strength,
    use_embedding_cache,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from phoenix_d2.baselines import CropRefiner
    from phoenix_d2.evaluation.comparison import Score
    from phoenix_d2.predictor import PhoenixRefiner

DETAILS = """\
example:
  python tools/compare_refiners.py --data ccp wgisd sod --degrade coco_val --output comparison \\
      --refiners phoenix phoenix:num_iters=3 samrefiner grabcut morphology \\
      --weights samrefiner=pretrained.pth --attack-weights other.pth

A folder of data holds instances.json and images/. With --data, each of its coarse_*.json is an input; records without
"gt_id" belong to the only object of their image. With --degrade, its ground truth is made coarse in each of --kinds at
each of --strengths (see degrade_json.py); "adversarial" wants --attack-weights, of another decoder than those compared.

A refiner is a name, phoenix, samrefiner, grabcut or morphology, and may be followed by options, as in
phoenix:num_iters=3,zoom_below=0.5, so that variants of one can stand side by side. The others are compared with the
first.

OUTPUT holds comparison.md, comparison.json and comparison.png, in masks/ the coarse and the refined masks as COCO
results, in scores/ what was measured on each, and in undecided/ what gates have yet to decide on. What is there already
and was made in the same way is not made again: the same command goes on after a kill, and refiners that differ in their
gate alone refine once.
"""

KINDS = ("mask_head", "polygon", "morphological", "adversarial")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=DETAILS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", default=[], metavar="DIR", help="folders with coarse_*.json")
    parser.add_argument("--degrade", type=Path, nargs="+", default=[], metavar="DIR", help="folders to degrade")
    parser.add_argument("--refiners", nargs="+", required=True, metavar="NAME", help="name or name:option=value,...")
    parser.add_argument(
        "--weights", nargs="+", default=[], type=_weights, metavar="NAME=FILE",
        help="of refiners with a network (default: phoenix_tiny for phoenix)",
    )  # fmt: skip
    add_attack_arguments(parser, prefix="attack-")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of degradation (default: all)")
    parser.add_argument(
        "--strengths", nargs="+", type=strength, default=[1 / 3, 2 / 3, 1.0], metavar="S",
        help="of degradation, from 0 to 1, fractions too (default: 1/3 2/3 1)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--max-images", type=positive_int, metavar="N", help="images drawn from each folder (default: all)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of that draw, the degradations and the bootstrap")
    add_device_argument(parser)
    add_cache_arguments(parser)
    args = parser.parse_args(argv)
    if not args.data and not args.degrade:
        parser.error("nothing to compare on: pass --data or --degrade")
    if args.degrade and "adversarial" in args.kinds and args.attack_weights is None:
        parser.error("the adversarial kind of --degrade needs --attack-weights; leave it out with --kinds")
    if unused := sorted(dict(args.weights).keys() - {*args.refiners, *map(_base_name, args.refiners)}):
        parser.error(f"--weights of {', '.join(unused)}, which --refiners does not name")
    return args


def main(argv: list[str] | None = None) -> None:
    """Compare, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words(interrupted="interrupted; the same command goes on"):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Check everything, make what is missing, write the report."""
    from tqdm import tqdm

    from phoenix_d2.offline.compare import ADVERSARIAL, degraded_inputs, file_inputs, score_all

    refiners = {name: load_refiner(name, args) for name in args.refiners}
    attack = None
    if args.degrade and ADVERSARIAL in args.kinds:
        attack = load_attack(args.attack_weights, args.attack_config, args.device)
    images = {"max_images": args.max_images, "seed": args.seed}
    noise = {"kinds": args.kinds, "strengths": args.strengths, "attack": attack}
    inputs = [entry for folder in args.data for entry in file_inputs(folder, **images)]
    inputs += [entry for folder in args.degrade for entry in degraded_inputs(folder, **noise, **images)]

    with tqdm(total=sum(entry.num_masks for entry in inputs) * len(refiners), unit="mask", disable=None) as progress:

        def advance(label: str, count: int) -> None:
            progress.set_description(label)
            progress.update(count)

        scores = score_all(inputs, refiners, output=args.output, advance=advance)
    write_report(args, scores)


def load_refiner(spec: str, args: argparse.Namespace) -> PhoenixRefiner | CropRefiner:
    """The refiner of a name and options, as in "phoenix:num_iters=3,zoom_below=0.5"."""
    import ast

    from phoenix_d2.baselines import build_refiner

    options = {}
    for option in filter(None, spec.partition(":")[2].split(",")):
        key, is_set, value = option.partition("=")
        if not is_set:
            raise ValueError(f"--refiners {spec}: expected option=value, got {option!r}.")
        try:
            options[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            options[key] = value
    name, weights = _base_name(spec), dict(args.weights)
    refiner = build_refiner(name, weights=weights.get(spec, weights.get(name)), device=args.device, **options)
    use_embedding_cache(args, refiner)
    return refiner


def write_report(args: argparse.Namespace, scores: Mapping[str, Mapping[str, Score]]) -> None:
    """Tables, JSON and plot."""
    from phoenix_d2.evaluation.comparison import compare, draw_gains, to_markdown
    from phoenix_d2.files import staged_folder
    from phoenix_d2.tables import without_nan

    rows = compare(scores, seed=args.seed)
    names = ("seed", "max_images", "weights", "attack_weights")
    settings = {name: getattr(args, name) for name in names}
    markdown = to_markdown(rows)
    with staged_folder(args.output) as folder:
        (folder / "comparison.json").write_text(json.dumps(without_nan({"settings": settings, "rows": rows})))
        (folder / "comparison.md").write_text(markdown)
        draw_gains(rows, folder / "comparison.png")
    print(f"{markdown}\nwritten to {args.output}")


def _base_name(spec: str) -> str:
    return spec.partition(":")[0]


def _weights(text: str) -> tuple[str, str]:
    name, is_set, file = text.rpartition("=")
    if not (is_set and name and file):
        raise argparse.ArgumentTypeError(f"expected NAME=FILE, got {text!r}")
    return name, file


if __name__ == "__main__":
    main()
