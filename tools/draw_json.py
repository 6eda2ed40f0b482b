#!/usr/bin/env python
"""Draw masks of several JSON files side by side, object by object: what a refiner did, to look at.

    python tools/draw_json.py --images val2017 --annotations instances_val2017.json \\
        --results coarse.json refined.json --output pictures --num 30

Records of the results files belong together by their place in the file, as in the output of refine_json.py; with
`gt_id` the ground truth stands beside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from phoenix_d2.arguments import errors_in_words, positive_int, seed


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="JSON", help="annotation file that lists the images"
    )
    parser.add_argument(
        "--results", type=Path, required=True, nargs="+", metavar="JSON", help="results files of equal length"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write PNGs to")
    parser.add_argument("--num", type=positive_int, default=30, help="objects to draw, at random (default: 30)")
    parser.add_argument("--columns", type=positive_int, default=2, help="objects beside one another in overview.png")
    parser.add_argument("--seed", type=seed, default=0)
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
    import numpy as np

    from phoenix_d2.data.images import read_image
    from phoenix_d2.data.mask_json import decode_segmentation, image_file_name, load_annotations, load_results
    from phoenix_d2.offline.report import staged_folder
    from phoenix_d2.visualization import compare_masks, contact_sheet

    annotations = load_annotations(args.annotations)
    stems = [path.stem for path in args.results]
    names = stems if len(set(stems)) == len(stems) else map(str, args.results)
    files = {name: load_results(path, annotations=annotations) for name, path in zip(names, args.results, strict=True)}
    lengths = {name: len(records) for name, records in files.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The results files differ in length {lengths}: give files made from one another.")
    image_of = {image["id"]: image for image in annotations["images"]}
    truth_of = {annotation["id"]: annotation for annotation in annotations["annotations"]}

    first = next(iter(files.values()))
    if not first:
        raise ValueError("The results files hold no masks: there is nothing to draw.")
    rng = np.random.default_rng(args.seed)
    chosen = rng.permutation(len(first))[: args.num]
    pictures = {}
    for index in chosen:
        records = {name: results[index] for name, results in files.items()}
        truth = truth_of.get(first[index].get("gt_id"))
        if truth is not None:
            records = {"ground truth": truth, **records}
        image = read_image(args.images / image_file_name(image_of[first[index]["image_id"]]))
        masks = {
            name: decode_segmentation(record["segmentation"], *image.shape[:2]) for name, record in records.items()
        }
        pictures[f"{index:06d}"] = compare_masks(image, masks)
    overview = contact_sheet(list(pictures.values()), columns=args.columns)
    with staged_folder(args.output) as folder:
        for name, picture in {**pictures, "overview": overview}.items():
            # OpenCV takes BGR
            cv2.imwrite(str(folder / f"{name}.png"), picture[..., ::-1])
    print(f"Wrote {len(pictures)} pictures and overview.png to {args.output}.")


if __name__ == "__main__":
    main()
