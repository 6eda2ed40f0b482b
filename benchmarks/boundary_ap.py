#!/usr/bin/env python
"""Measure what scoring masks costs: boundary AP beside faster-coco-eval's own, and how far apart the figures are."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phoenix_d2.arguments import errors_in_words, positive_int

EXAMPLE = """\
examples:
  python benchmarks/boundary_ap.py --output output/boundary_ap.json
  python benchmarks/boundary_ap.py --output output/boundary_ap.json --images 50 --turns 1

The objects are drawn, the same for the same --images: 20 on an image of 480 x 640 pixels, of 20 categories, 2 % of
them crowds; a few more results than objects, with equal scores among them. Times are CPU time of the process on one
thread, which other work on the machine disturbs least, with everything from parsed JSON to the figures; evaluators
take turns, and the fastest turn counts. "ours, per pair" is IoU and Boundary IoU of each result with its object,
"ours, binary" what evaluate_masks.py measures of such a pair.
"""
STYLES = ("coco", "lvis")

_SIZE = (480, 640)
_OBJECTS_AN_IMAGE = 20
_NUM_CATEGORIES = 20
_MAX_DETS = {"coco": 100, "lvis": 300}
# of how many pairs the measures of binary masks are timed
_NUM_BINARY = 1000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="JSON", help="for the figures")
    parser.add_argument("--images", type=positive_int, default=500, metavar="N", help="default: 500")
    parser.add_argument("--turns", type=positive_int, default=3, metavar="N", help="default: 3")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words(ImportError):
        print(run(args))


def run(args: argparse.Namespace) -> str:
    """Measure all evaluators and write the figures."""
    import cv2

    from phoenix_d2.data.mask_json import write_json_atomically
    from phoenix_d2.tables import format_table, without_nan

    cv2.setNumThreads(1)
    annotations, results = draw(args.images)
    figures = measure(annotations, results, args.turns)
    write_json_atomically(args.output, without_nan(figures))
    rows = [{"evaluator": name, **row} for name, row in figures["evaluators"].items()]
    verdicts = [
        f"Boundary AP in {style} style: {comparison['ratio']:.1f} times faster than the library's own, figures at most "
        f"{comparison['largest_difference']:.1e} apart."
        for style, comparison in figures["boundary"].items()
    ]
    heading = f"{args.images} images, {figures['objects']} objects, {figures['results']} results"
    return "\n".join([heading, "", format_table(rows, float_format=".2f"), "", *verdicts])


def measure(annotations: dict[str, Any], results: list[dict[str, Any]], turns: int) -> dict[str, Any]:
    """CPU seconds of each evaluator, and how far our boundary AP is from the library's."""
    from time import process_time

    from tqdm import tqdm

    from phoenix_d2.evaluation.instance_masks import evaluate_masks, paired_overlaps

    pairs = [result for result in results if "gt_id" in result]
    evaluators: dict[str, tuple[int, Callable[[], Any]]] = {
        "pycocotools, mask AP": (len(results), lambda: by_pycocotools(annotations, results)),
        "ours, mask AP": (len(results), lambda: evaluate_masks(annotations, results, iou_types=["segm"])),
        "ours, per pair": (len(pairs), lambda: paired_overlaps(annotations, pairs)),
        "ours, binary": (len(pairs[:_NUM_BINARY]), lambda: score_pairs(annotations, pairs[:_NUM_BINARY])),
    }
    for style in STYLES:
        evaluators |= {
            f"faster-coco-eval, boundary AP, {style}": (
                len(results),
                lambda style=style: by_library(annotations, results, style),
            ),
            f"ours, boundary AP, {style}": (
                len(results),
                lambda style=style: evaluate_masks(annotations, results, style=style, iou_types=["boundary"])[
                    "boundary"
                ],
            ),
        }
    seconds: dict[str, list[float]] = {name: [] for name in evaluators}
    figures = {}
    for name in (progress := tqdm(list(evaluators) * turns, unit="evaluation", disable=None)):
        progress.set_postfix_str(name)
        start = process_time()
        figures[name] = evaluators[name][1]()
        seconds[name].append(process_time() - start)
    fastest = {name: min(times) for name, times in seconds.items()}

    comparisons = {}
    for style in STYLES:
        theirs, ours = f"faster-coco-eval, boundary AP, {style}", f"ours, boundary AP, {style}"
        comparisons[style] = {
            "ratio": fastest[theirs] / fastest[ours],
            # of shares; a metric that few images leave without an object is NaN
            "largest_difference": max(
                abs(value - figures[theirs][metric]) / 100
                for metric, value in figures[ours].items()
                if not math.isnan(value)
            ),
            "figures": figures[ours],
        }
    return {
        "images": len(annotations["images"]),
        "objects": len(annotations["annotations"]),
        "results": len(results),
        "evaluators": {
            name: {"CPU s": time, "masks": evaluators[name][0], "ms a mask": 1e3 * time / evaluators[name][0]}
            for name, time in fastest.items()
        },
        "boundary": comparisons,
    }


def by_pycocotools(annotations: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Mask AP by the reference."""
    import io
    from contextlib import redirect_stdout
    from copy import deepcopy

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = deepcopy(annotations)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(deepcopy(results)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()


def by_library(annotations: dict[str, Any], results: list[dict[str, Any]], style: str) -> dict[str, float]:
    """Boundary AP in percent by faster-coco-eval's own boundary mode, by our names of the metrics."""
    from copy import deepcopy

    from faster_coco_eval import COCO, COCOeval_faster

    from phoenix_d2.evaluation.instance_masks import COCO_METRICS, LVIS_METRICS

    truth = COCO(deepcopy(annotations))
    evaluation = COCOeval_faster(
        truth,
        truth.loadRes(deepcopy(results)),
        "boundary",
        lvis_style=style == "lvis",
        boundary_cpu_count=1,
        rle_iou_max_workers=1,
    )
    evaluation.params.maxDets = [_MAX_DETS[style]]
    evaluation.run()
    figures = evaluation.stats_as_dict
    theirs = ["AP_all", "AP_50", "AP_75", "AP_small", "AP_medium", "AP_large", "APr", "APc", "APf"]
    ours = LVIS_METRICS if style == "lvis" else COCO_METRICS
    return {name: 100 * figures[other] for name, other in zip(ours, theirs, strict=False)}


def score_pairs(annotations: dict[str, Any], pairs: list[dict[str, Any]]) -> None:
    """The measures of binary masks, of results and the objects that they name."""
    from phoenix_d2.data.mask_json import decode_segmentation
    from phoenix_d2.evaluation.binary_masks import score_mask

    objects = {annotation["id"]: annotation for annotation in annotations["annotations"]}
    for result in pairs:
        score_mask(*(decode_segmentation(r["segmentation"], *_SIZE) for r in (result, objects[result["gt_id"]])))


def draw(num_images: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and results: five in six objects are found, more or less, and a fifth as many are made up."""
    import numpy as np
    from tqdm import trange

    from phoenix_d2.data.mask_json import encode_mask

    rng = np.random.default_rng(0)
    height, width = _SIZE
    images, annotations, results = [], [], []
    for image_id in trange(1, num_images + 1, desc="drawing", unit="image", disable=None):
        unseen, not_exhaustive = rng.choice(np.arange(1, _NUM_CATEGORIES + 1), size=(2, 3), replace=False).tolist()
        images.append(
            {
                "id": image_id,
                "height": height,
                "width": width,
                "neg_category_ids": unseen,
                "not_exhaustive_category_ids": not_exhaustive,
            }
        )
        for _ in range(_OBJECTS_AN_IMAGE):
            # as many objects of each order of size; some are cut by the image border
            center, radius = rng.uniform((0, 0), (width, height)), float(np.exp(rng.uniform(np.log(6), np.log(140))))
            outline = _outline(rng, radius)
            record = {"image_id": image_id, "category_id": int(rng.integers(1, _NUM_CATEGORIES + 1))}
            mask = _filled(center + outline)
            annotations.append(
                {
                    **record,
                    "id": len(annotations) + 1,
                    "segmentation": encode_mask(mask),
                    "area": float(mask.sum()),
                    "iscrowd": int(rng.random() < 0.02),
                }
            )
            # scores of two digits are often equal
            score, is_found, is_made_up = round(float(rng.random()), 2), rng.random() < 5 / 6, rng.random() < 0.2
            if is_found:
                moved = center + outline + rng.normal(0, 0.05 * radius, 2) + rng.normal(0, 0.05 * radius, outline.shape)
                rle = encode_mask(_filled(moved))
                results.append({**record, "segmentation": rle, "score": score, "gt_id": len(annotations)})
            if is_made_up:
                rle = encode_mask(_filled(rng.uniform((0, 0), (width, height)) + outline))
                results.append({**record, "segmentation": rle, "score": round(float(rng.random()), 2)})
    categories = [{"id": c, "name": str(c), "frequency": "rcf"[c % 3]} for c in range(1, _NUM_CATEGORIES + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def _outline(rng: Any, radius: float) -> Any:
    """(64, 2) points around the origin: a circle with waves of six lengths."""
    import numpy as np

    angles, waves = np.linspace(0, 2 * np.pi, 64, endpoint=False), np.arange(1, 7)[:, None]
    heights = rng.normal(0, 0.25 / waves) * np.cos(waves * angles + rng.uniform(0, 2 * np.pi, waves.shape))
    distances = radius * np.maximum(1 + heights.sum(axis=0), 0.2)
    return np.stack([distances * np.cos(angles), distances * np.sin(angles)], axis=1)


def _filled(outline: Any) -> Any:
    """(H, W) bool mask of a polygon."""
    import cv2
    import numpy as np

    mask = np.zeros(_SIZE, np.uint8)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
    return mask.astype(bool)


if __name__ == "__main__":
    main()
