#!/usr/bin/env python
"""Make coarse masks of an annotation file's, to measure a refiner with.

    python tools/degrade_json.py --annotations gt.json --output coarse.json --kind mask_head --strength 0.5
    python tools/degrade_json.py --annotations gt.json --output coarse.json --kind adversarial \\
        --weights other.pth --images val2017
    python tools/evaluate_json.py --annotations gt.json --results coarse.json refined.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from phoenix_d2.arguments import (
    add_attack_arguments,
    add_device_argument,
    check_output,
    errors_in_words,
    load_attack,
    seed,
    strength,
)

_KINDS = """Kinds, from strength 0 to 1:
  mask_head      squeezed through the grid of a detector's mask head, 56 x 56 to 7 x 7 (28 x 28 at 1/3)
  polygon        contours as polygons of few vertices, tolerance 0.2 % to 2 % of the perimeter
  morphological  rough contours, blobs, dilated and eroded patches, down to an IoU of 0.9 to 0.5
  adversarial    what a decoder says under attack, down to an IoU of 0.9 to 0.5; wants --weights and --images.
                 Take another decoder than that of the refiner to measure, which knows its own mistakes"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_KINDS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="ground truth, COCO or LVIS")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="JSON", help="results to write; records carry gt_id"
    )
    parser.add_argument("--kind", default="mask_head", help="see below (default: mask_head)")
    parser.add_argument(
        "--strength", type=strength, default=0.5, metavar="S", help="from 0 to 1, fractions too (default: 0.5)"
    )
    parser.add_argument("--seed", type=seed, default=0)
    attack = parser.add_argument_group("adversarial")
    add_attack_arguments(attack)
    attack.add_argument("--images", type=Path, metavar="DIR", help="folder of the images")
    add_device_argument(attack)
    args = parser.parse_args(argv)
    if args.kind == "adversarial" and None in (args.weights, args.images):
        parser.error("--kind adversarial attacks a decoder on the images: pass --weights and --images.")
    return args


def main(argv: list[str] | None = None) -> None:
    """Degrade and write, and say in a line what went wrong."""
    args = parse_args(argv)
    # heavy imports stay out of the way of --help
    from phoenix_d2.data.degrade import degrade_annotations
    from phoenix_d2.data.mask_json import load_annotations, write_json_atomically

    with errors_in_words():
        check_output(args.output, [args.annotations])
        if args.kind == "adversarial":
            results = attack_annotations(args)
        else:
            annotations = load_annotations(args.annotations)
            results = degrade_annotations(annotations, kind=args.kind, strength=args.strength, seed=args.seed)
        write_json_atomically(args.output, results)
    print(f"Wrote {len(results)} masks to {args.output}.")


def attack_annotations(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Degrade by attack, and print what became of the attacks."""
    from tqdm import tqdm

    from phoenix_d2.offline.job import plan_job
    from phoenix_d2.offline.perturb import perturb_tasks
    from phoenix_d2.structures import PerturbationOutcome

    results, outcomes = perturb_tasks(
        load_attack(args.weights, args.config, args.device),
        tqdm(plan_job(args.annotations, image_folder=args.images).tasks, unit="image", disable=None),
        strength=args.strength,
        seed=args.seed,
    )
    shares = {outcome: outcomes.count(outcome) / max(len(outcomes), 1) for outcome in PerturbationOutcome}
    print(", ".join(f"{100 * share:.0f} % {outcome.name.lower()}" for outcome, share in shares.items() if share))
    return results


if __name__ == "__main__":
    main()
