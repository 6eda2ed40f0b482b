#!/usr/bin/env python
"""Measure what the decoder's stride and zoom leave of an outline: the best that masks can be, whatever refines them."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phoenix_d2.arguments import errors_in_words, positive_int

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from phoenix_d2.ops.frames import Frame

EXAMPLE = """\
example:
  python benchmarks/stride.py --annotations coco_val/instances.json --output output/stride.json

Masks go to the low-resolution frame and come back as logits do. "shares": the logits tell how much of a pixel a mask
covers, the most that they can say; "whole pixels": they are sure of every pixel, as those of most decoders are. Needs
no images.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="COCO or LVIS annotations")
    parser.add_argument("--output", type=Path, required=True, metavar="JSON", help="for the figures")
    parser.add_argument("--input-size", type=positive_int, default=320, metavar="S", help="of the model (default: 320)")
    parser.add_argument(
        "--strides", type=positive_int, nargs="+", default=[4, 2, 1], metavar="N",
        help="model-input pixels a low-resolution pixel (default: 4 2 1)",
    )  # fmt: skip
    parser.add_argument(
        "--zoom-below", type=float, nargs="+", default=[0.0, 0.7], metavar="Z",
        help="see RefineOptions (default: 0 0.7)",
    )  # fmt: skip
    parser.add_argument("--max-masks", type=positive_int, default=500, metavar="N", help="default: the first 500")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words():
        print(run(args))


def run(args: argparse.Namespace) -> str:
    """Measure, write the figures, return a table of them."""
    from phoenix_d2.data.mask_json import load_annotations, write_json_atomically
    from phoenix_d2.tables import format_table

    masks = list(read_masks(load_annotations(args.annotations), args.max_masks))
    rows = measure(masks, input_size=args.input_size, strides=args.strides, zooms=args.zoom_below)
    write_json_atomically(args.output, rows)
    return format_table(rows)


def read_masks(annotations: Any, max_masks: int) -> Iterator[NDArray[np.bool_]]:
    """The (H, W) masks of the first objects that are no crowd."""
    from phoenix_d2.data.mask_json import decode_segmentation

    sizes = {image["id"]: (image["height"], image["width"]) for image in annotations["images"]}
    objects = (record for record in annotations["annotations"] if not record.get("iscrowd", 0))
    for record in islice(objects, max_masks):
        yield decode_segmentation(record["segmentation"], *sizes[record["image_id"]])


def measure(
    masks: Sequence[NDArray[np.bool_]], *, input_size: int, strides: Sequence[int], zooms: Sequence[float]
) -> list[dict[str, Any]]:
    """Mean overlaps in percent of masks with what comes back of them, a row for each zoom, stride and kind of logits.

    Args:
        masks: (H, W) bool each; empty ones do not count.
        input_size: side of the model input in pixels.
        strides: divisors of that side.
        zooms: values of `RefineOptions.zoom_below`.

    Raises:
        ValueError: a stride does not divide the side.
    """
    import torch

    from phoenix_d2.ops.boundary import boundary_iou
    from phoenix_d2.ops.frames import Frame
    from phoenix_d2.options import RefineOptions
    from phoenix_d2.plan import plan_masks
    from phoenix_d2.prompting.cues import UserCues

    if wrong := [stride for stride in strides if input_size % stride]:
        raise ValueError(f"The strides {wrong} do not divide the input size {input_size}.")
    overlaps = defaultdict(list)
    for mask in masks:
        given = torch.from_numpy(mask)[None]
        for zoom in zooms:
            # in the same window whatever the stride, though which masks are too small not to be zoomed depends on it
            whole = Frame.whole(mask.shape, input_size=input_size, low_res_size=input_size // max(strides))
            _, frames = plan_masks(given, whole, RefineOptions(zoom_below=zoom), UserCues())
            for window, stride in product(frames.values(), strides):
                frame = replace(window, low_res_size=input_size // stride)
                shares = frame.masks_to_low_res(given) - 0.5
                for kind, logits in (("shares", shares), ("whole pixels", shares.sign())):
                    back = _to_image(logits, frame)
                    iou = (back & mask).sum() / (back | mask).sum()
                    bands = (boundary_iou(back, mask), boundary_iou(back, mask, dilation_ratio=0.01))
                    overlaps[zoom, stride, kind].append((iou, *bands))
    return [
        {
            "zoom below": zoom,
            "stride": stride,
            "logits": kind,
            "masks": len(values),
            **{
                name: 100 * sum(column) / len(values)
                for name, column in zip(("IoU", "bIoU 2 %", "bIoU 1 %"), zip(*values, strict=True), strict=True)
            },
        }
        for (zoom, stride, kind), values in overlaps.items()
    ]


def _to_image(logits: Any, frame: Frame) -> NDArray[np.bool_]:
    """(1, s, s) logits as an (H, W) mask."""
    import numpy as np

    x0, y0, x1, y1 = frame.window
    mask = np.zeros(frame.image_size, bool)
    mask[y0:y1, x0:x1] = frame.logits_to_window(logits)[0].numpy() > 0
    return mask


if __name__ == "__main__":
    main()
