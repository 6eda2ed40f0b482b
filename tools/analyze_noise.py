#!/usr/bin/env python
"""Measure noise: where attacks end, and how their errors, morphological ones and models' follow the image (paper B.5).

    python tools/analyze_noise.py --weights phoenix_tiny --data path/to/folder --output noise \\
        --results path/to/folder/coarse_*.json

Writes noise.md (tables), noise.json (tables and every draw), correlation.png (as the paper's Figures 2b and 2c) and
gallery_*.png (as its Figure 4). Models' masks are those of results files whose records carry gt_id.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from phoenix_d2.arguments import (
    add_attack_arguments,
    add_device_argument,
    errors_in_words,
    load_attack,
    positive_int,
    seed,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of instances.json and images/")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--results", type=Path, nargs="*", default=[], metavar="JSON", help="models' masks, with gt_id")
    parser.add_argument("--max-images", type=positive_int, default=50, help="images taken, at random (default: 50)")
    parser.add_argument("--num-gallery", type=int, default=6, help="objects drawn, at random (default: 6)")
    parser.add_argument("--seed", type=seed, default=0)
    add_attack_arguments(parser, required=True)
    add_device_argument(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure and write, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words():
        analyze(args)


def analyze(args: argparse.Namespace) -> None:
    """Image by image, then the tables."""
    # heavy imports stay out of the way of --help
    import numpy as np
    import torch
    from tqdm import tqdm

    from phoenix_d2.data.images import read_image
    from phoenix_d2.data.mask_json import decode_segmentation, load_annotations, load_results
    from phoenix_d2.offline.job import plan_job
    from phoenix_d2.offline.noise import draw_gallery, measure_image

    annotation_file = args.data / "instances.json"
    annotations = load_annotations(annotation_file)
    results = {path.stem: load_results(path, annotations=annotations) for path in args.results}
    if unpaired := [name for name, records in results.items() if not any("gt_id" in record for record in records)]:
        raise ValueError(f"No record of {', '.join(unpaired)} has a gt_id: add the id of the annotation that it shows.")
    tasks = plan_job(annotation_file, image_folder=args.data / "images").tasks
    if not tasks:
        raise ValueError(f"{annotation_file} has no masks, or only crowds: there is nothing to measure.")
    attack = load_attack(args.weights, args.config, args.device)

    rng = np.random.default_rng(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    chosen = [tasks[i] for i in sorted(rng.permutation(len(tasks))[: args.max_images])]
    in_gallery = set(rng.permutation(len(chosen))[: args.num_gallery].tolist())
    draws: list[Any] = []
    galleries: dict[str, Any] = {}
    for number, task in enumerate(tqdm(chosen, unit="image", disable=None)):
        image = read_image(task.path)
        made = measure_image(
            attack.refiner.refiner, image, task.records,
            {name: [r for r in records if r["image_id"] == task.image_id] for name, records in results.items()},
            sampler=attack.sampler, dense_prompt=attack.dense_prompt, generator=generator,
        )  # fmt: skip
        draws += [draw for draw, _ in made]
        if number in in_gallery:
            shown = task.records[rng.integers(len(task.records))]
            target = decode_segmentation(shown["segmentation"], *task.size)
            of_target = [(draw, mask) for draw, mask in made if draw.annotation_id == shown["id"]]
            galleries[f"gallery_{len(galleries)}.png"] = draw_gallery(image, target, of_target)
    write(args.output, draws, galleries)
    print(f"Wrote noise.md, noise.json and pictures to {args.output}.")


def write(folder: Path, draws: list[Any], galleries: dict[str, Any]) -> None:
    """All files, each whole or not at all."""
    from dataclasses import asdict

    import cv2

    from phoenix_d2.files import staged_folder
    from phoenix_d2.offline.noise import attack_table, correlation_table, draw_histograms, report
    from phoenix_d2.tables import without_nan

    tables = {"attacks": attack_table(draws), "correlation": correlation_table(draws)}
    with staged_folder(folder) as staging:
        content = {**tables, "draws": [asdict(draw) for draw in draws]}
        (staging / "noise.json").write_text(json.dumps(without_nan(content)))
        (staging / "noise.md").write_text(report(draws) + "\n")
        draw_histograms(draws).savefig(staging / "correlation.png", dpi=150)
        for name, picture in galleries.items():
            cv2.imwrite(str(staging / name), picture[..., ::-1])


if __name__ == "__main__":
    main()
