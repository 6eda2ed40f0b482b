#!/usr/bin/env python
"""Measure what the embedding cache saves: refining without it, with an empty one, and with a full one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phoenix_d2.arguments import errors_in_words, positive_int

if TYPE_CHECKING:
    from phoenix_d2.refiner import MaskRefiner

EXAMPLE = """\
examples:
  python benchmarks/embedding_cache.py --output output/embedding_cache.json
  python benchmarks/embedding_cache.py --output output/embedding_cache.json --encoders vit_b --images 1

Drawn images of 480 x 640 pixels, refined without a gate: once on the whole image, which all masks share, and once on a
window a mask. phoenix_tiny comes with its weights, other encoders have random ones: costs are the same, the agreement
of their masks means nothing. Seconds are CPU seconds on one thread, which other work on the machine disturbs least; on
CUDA, seconds of a clock. "agreement" is the mean IoU of masks refined with the cache and without; those of the empty
and the full cache are the same to the bit, or the benchmark fails.
"""

_SIZE = (480, 640)
_PACKAGED = "phoenix_tiny"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="JSON", help="for the figures")
    parser.add_argument("--images", type=positive_int, default=4, metavar="N", help="default: 4")
    parser.add_argument(
        "--encoders", nargs="+", default=[_PACKAGED], metavar="NAME",
        help=f"keys of ENCODERS, or {_PACKAGED} (default: {_PACKAGED})",
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words(ImportError):
        print(run(args))


def run(args: argparse.Namespace) -> str:
    """Measure encoder by encoder, write the figures, return a table of them."""
    from tempfile import TemporaryDirectory

    import torch

    from phoenix_d2.data.datasets.drawn import draw_dataset
    from phoenix_d2.data.mask_json import write_json_atomically
    from phoenix_d2.tables import format_table

    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        drawn = draw_dataset(Path(folder, "drawn"), num_images=args.images, image_size=_SIZE)
        scenes = _load(drawn.image_folder, drawn.annotation_file)
        rows = [
            measure(name, scenes, zoomed=zoomed, folder=Path(folder, f"{name} {zoomed}"))
            for name in args.encoders
            for zoomed in (False, True)
        ]
    write_json_atomically(args.output, rows)
    return format_table(rows, float_format=".2f")


def measure(name: str, scenes: list[tuple[Any, Any]], *, zoomed: bool, folder: Path) -> dict[str, Any]:
    """The row of one encoder, on whole images or on windows; the cache comes to lie in `folder`.

    Raises:
        ValueError: there is no such encoder, or the masks of a full cache are not those of an empty one.
    """
    import torch

    from phoenix_d2.ops.masks import mask_iou
    from phoenix_d2.sam.feature_cache import cache_embeddings

    refiner = _build(name, zoomed=zoomed)
    # the first use of a network is slower
    refiner.refine(scenes[0][0], scenes[0][1][:1])
    plain, off = _timed(refiner, scenes)
    cache_embeddings(refiner, folder)
    empty, cold = _timed(refiner, scenes)
    full, warm = _timed(refiner, scenes)
    if not torch.equal(empty, full):
        raise ValueError(f"{name}: the masks of a full cache differ from those of an empty one.")
    sizes = [path.stat().st_size for path in folder.iterdir()]
    return {
        "encoder": name,
        "frames": "a window a mask" if zoomed else "whole images",
        "masks": len(plain),
        "entries": len(sizes),
        "MB_an_entry": sum(sizes) / len(sizes) / 1e6,
        "off_ms_a_mask": 1e3 * off / len(plain),
        "empty_ms_a_mask": 1e3 * cold / len(plain),
        "full_ms_a_mask": 1e3 * warm / len(plain),
        "off_to_full": off / warm,
        "agreement": float(mask_iou(plain, full).mean()),
    }


def _build(name: str, *, zoomed: bool) -> MaskRefiner:
    from dataclasses import replace

    import torch

    from phoenix_d2.predictor import PhoenixRefiner
    from phoenix_d2.sam.build import build_refiner

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == _PACKAGED:
        refiner = PhoenixRefiner.from_pretrained(name).refiner
    else:
        torch.manual_seed(0)
        refiner = build_refiner(name).eval()
    # no share of the image is above 2
    zoom_below = 2.0 if zoomed else 0.0
    refiner.options = replace(refiner.options, gate="off", zoom_small=zoomed, zoom_below=zoom_below)
    return refiner.to(device)


def _load(image_folder: Path, annotation_file: Path) -> list[tuple[Any, Any]]:
    """(3, H, W) uint8 images and their (N, H, W) bool masks."""
    import numpy as np
    import torch

    from phoenix_d2.data.images import read_image
    from phoenix_d2.data.mask_json import decode_segmentation
    from phoenix_d2.offline.job import plan_job

    return [
        (
            torch.from_numpy(read_image(task.path)).permute(2, 0, 1),
            torch.from_numpy(np.stack([decode_segmentation(r["segmentation"], *task.size) for r in task.records])),
        )
        for task in plan_job(annotation_file, image_folder=image_folder).tasks
    ]


def _timed(refiner: MaskRefiner, scenes: list[tuple[Any, Any]]) -> tuple[Any, float]:
    """(N, H, W) bool refined masks of all images on the CPU, and the seconds that they took."""
    from time import perf_counter, process_time

    import torch

    # a GPU works while its process waits
    clock = perf_counter if refiner.device.type == "cuda" else process_time
    start = clock()
    # bringing the masks back waits for the device
    masks = [refiner.refine(image, coarse).masks.cpu() for image, coarse in scenes]
    seconds = clock() - start
    return torch.cat(masks), seconds


if __name__ == "__main__":
    main()
