#!/usr/bin/env python
"""Train a refiner in several variants, each with several seeds, and compare them.

    python tools/run_ablation.py ablations/noise_cmrl.yaml --weights pretrained.pth --train my/train --test my/val \\
        --output output/ablations

Each ablation gets a folder, with NAME.md, NAME.json and NAME.png after each seed; trainings that several ablations have
in common are done once. The same command goes on where it was stopped; seeds, variants and inputs may be added. The
keys of an ablation are those of phoenix_d2.engine.ablation.Ablation.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from phoenix_d2.arguments import errors_in_words, positive_int


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablations", nargs="+", metavar="YAML", help="paths, or names in configs/")
    parser.add_argument("--weights", required=True, metavar="FILE", help="that all runs start from, or their name")
    parser.add_argument("--train", nargs="+", required=True, metavar="DATASET", help="registered, or a folder")
    parser.add_argument(
        "--test", type=Path, required=True, metavar="DIR", help="instances.json and images/, whose masks are degraded"
    )
    parser.add_argument(
        "--coarse", type=Path, nargs="*", default=[], metavar="JSON",
        help="models' masks with gt_id to evaluate on too, each in a folder of instances.json and images/",
    )  # fmt: skip
    parser.add_argument("--max-images", type=positive_int, help="evaluated of each folder, at random (default: all)")
    parser.add_argument("--output", type=Path, default=Path("output/ablations"), metavar="DIR", help="parent folder")
    parser.add_argument(
        "--overrides", nargs="+", default=[], metavar="KEY VALUE", help="of config keys, for all runs of all ablations"
    )
    args = parser.parse_args(argv)
    if len(args.overrides) % 2:
        parser.error(f"--overrides are pairs of a key and a value, got {' '.join(args.overrides)}")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Ablation by ablation; all are read before the first starts."""
    # heavy imports stay out of the way of --help
    from phoenix_d2.engine.ablation import prepare_inputs, read_ablation, run_ablation
    from phoenix_d2.files import staged_folder
    from phoenix_d2.offline.ablation_report import AblationReport
    from phoenix_d2.sam.pretrained import find_weights
    from phoenix_d2.tables import without_nan

    weights = str(find_weights(args.weights))
    overrides = dict(zip(args.overrides[::2], args.overrides[1::2], strict=True))
    for name, ablation in {Path(name).stem: read_ablation(name) for name in args.ablations}.items():
        ablation = replace(ablation, overrides=ablation.overrides | overrides)
        folder = args.output / name
        inputs = prepare_inputs(
            ablation, folder / "inputs", test=args.test, coarse_files=args.coarse, max_images=args.max_images
        )
        for runs, references in run_ablation(
            ablation, folder / "runs", trainings=args.output / "trainings", weights=weights, train=args.train,
            inputs=inputs, report=partial(print, f"{name}:", flush=True),
        ):  # fmt: skip
            report = AblationReport(name, runs, references)
            with staged_folder(folder) as staging:
                (staging / f"{name}.md").write_text(report.markdown())
                (staging / f"{name}.json").write_text(json.dumps(without_nan(report.plain())))
                report.plot().savefig(staging / f"{name}.png", dpi=150)
        print(report.markdown(), flush=True)


if __name__ == "__main__":
    main()
