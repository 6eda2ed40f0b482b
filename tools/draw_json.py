#!/usr/bin/env python
"""Draw masks of several JSON files side by side, object by object: what a refiner did, to look at.

    python tools/draw_json.py --images val2017 --annotations instances_val2017.json \\
        --results coarse.json refined.json --output pictures --num 30

Files are results or annotations. Their records belong together by their place in the file, as in the output of
refine_json.py and clean_annotations.py; with `gt_id` the ground truth stands beside them. Of two files or more, the
last panel shows what the last gained and lost against the first.

A picture is named after the place of its object in the file, which its caption repeats, with the object's image,
category and score. Titles give each mask's IoU with the ground truth, or without one, the last mask's with the first.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phoenix_d2.arguments import check_new_folder, errors_in_words, positive_int, seed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from phoenix_d2.data.mask_json import Record


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="JSON", help="annotation file that lists the images"
    )
    parser.add_argument(
        "--results", type=Path, required=True, nargs="+", metavar="JSON",
        help="results or annotation files of equal length",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder to write PNGs to")
    parser.add_argument("--num", type=positive_int, default=30, help="objects to draw (default: 30)")
    parser.add_argument(
        "--order", choices=("change", "random"), default="change",
        help="which: those whose masks differ most between the first file and the last, or any (default: change)",
    )  # fmt: skip
    parser.add_argument("--columns", type=positive_int, default=2, help="objects beside one another in overview.png")
    parser.add_argument("--seed", type=seed, default=0, help="of the random order, also of equal changes")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Draw, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words():
        draw(args)


def draw(args: argparse.Namespace) -> None:
    """Write one PNG an object, and all of them as overview.png."""
    # heavy imports stay out of the way of --help
    import cv2

    from phoenix_d2.data.mask_json import load_annotations
    from phoenix_d2.files import staged_folder
    from phoenix_d2.visualization import contact_sheet

    check_new_folder(args.output)
    annotations = load_annotations(args.annotations)
    files = load_files(args.results, annotations)
    pictures = {f"{i:06d}": draw_object(args.images, annotations, files, i) for i in choose(args, annotations, files)}
    overview = contact_sheet(list(pictures.values()), columns=args.columns)
    with staged_folder(args.output) as folder:
        for name, picture in {**pictures, "overview": overview}.items():
            # OpenCV takes BGR
            cv2.imwrite(str(folder / f"{name}.png"), picture[..., ::-1])
    print(f"Wrote {len(pictures)} pictures and overview.png to {args.output}.")


def load_files(paths: Sequence[Path], annotations: Record) -> dict[str, list[Record]]:
    """The checked records of each file, by its name."""
    from phoenix_d2.data.mask_json import as_results, check_results, read_json

    stems = [path.stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else map(str, paths)
    files = {}
    for name, path in zip(names, paths, strict=True):
        files[name] = as_results(read_json(path), source=path)
        check_results(files[name], source=path, annotations=annotations)
    lengths = {name: len(records) for name, records in files.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The files differ in length {lengths}: give files made from one another.")
    if not any(lengths.values()):
        raise ValueError("The files hold no masks: there is nothing to draw.")
    return files


def choose(args: argparse.Namespace, annotations: Record, files: Mapping[str, Sequence[Record]]) -> list[int]:
    """Places of the objects to draw."""
    import numpy as np
    import pycocotools.mask as mask_util

    from phoenix_d2.data.mask_json import image_sizes, segmentation_to_rle

    first, *_, last = (*files.values(), *files.values())
    order = np.random.default_rng(args.seed).permutation(len(first))
    if args.order == "change":
        sizes = image_sizes(annotations)
        overlaps = [
            mask_util.iou(*([segmentation_to_rle(r["segmentation"], *sizes[r["image_id"]])] for r in pair), [0])
            for pair in zip(first, last, strict=True)
        ]
        order = order[np.argsort(np.ravel(overlaps)[order], kind="stable")]
    chosen: list[int] = order[: args.num].tolist()
    return chosen


def draw_object(folder: Path, annotations: Record, files: Mapping[str, Sequence[Record]], index: int) -> Any:
    """The picture of one object, (H, W, 3) RGB."""
    from phoenix_d2.data.images import read_image
    from phoenix_d2.data.mask_json import decode_segmentation, image_file_name
    from phoenix_d2.ops.boundary import CroppedMask
    from phoenix_d2.visualization import captioned, compare_masks

    records = {name: records[index] for name, records in files.items()}
    record = next(iter(records.values()))
    image_record = next(image for image in annotations["images"] if image["id"] == record["image_id"])
    image = read_image(folder / image_file_name(image_record))
    masks = {name: decode_segmentation(each["segmentation"], *image.shape[:2]) for name, each in records.items()}
    own = (record.get("gt_id", record.get("id")), record["image_id"])
    truth = next((a for a in annotations["annotations"] if (a["id"], a["image_id"]) == own), None)
    shown = {} if truth is None else {"ground truth": decode_segmentation(truth["segmentation"], *image.shape[:2])}
    reference, *_ = (*shown.values(), *masks.values())
    for name, mask in masks.items():
        iou = CroppedMask.of(mask).iou(CroppedMask.of(reference))
        shown[name if mask is reference else f"{name}: {100 * iou:.1f}"] = mask
    titles = list(shown)[-len(masks) :]
    change = (titles[0], titles[-1]) if len(titles) > 1 else None
    category = next((c["name"] for c in annotations["categories"] if c["id"] == record["category_id"]), "")
    caption = f"{index:06d}: {image_file_name(image_record)}, {category or record['category_id']}"
    return captioned(compare_masks(image, shown, change=change), f"{caption}, score {record.get('score', 1.0):.2f}")


if __name__ == "__main__":
    main()
