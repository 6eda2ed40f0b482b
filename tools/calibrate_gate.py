#!/usr/bin/env python
"""Calibrate the gate that keeps a coarse mask where the refined one is not expected to be better."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tqdm import tqdm

    from phoenix_d2.data.mask_json import Record
    from phoenix_d2.gate import RefinementGate
    from phoenix_d2.offline.calibrate import Floats, JudgedMasks
    from phoenix_d2.predictor import PhoenixRefiner

DETAILS = """\
example:
  python tools/calibrate_gate.py --weights model_final.pth --output refiner.safetensors \\
      --images coco_val/images --annotations coco_val/instances.json --degrade mask_head polygon morphological \\
      --coarse attacked.json --test ccp wgisd sod

The masks of --coarse are COCO results that name in "gt_id" the annotation that each is a prediction of; those without
belong to the only object of their image. With --degrade, the annotations themselves are made coarse, in each kind at
each of --strengths (see degrade_json.py). --test names folders of instances.json, images/ and coarse_*.json, which only
measure the gate.

OUTPUT holds the weights and their gate. Beside it lie OUTPUT.gate.md, .json and .png, what the gate makes of every set
(of the calibration's, as predicted without the image in question), and OUTPUT.gate.npz, what was measured: the same
command goes on after a kill, and fits again in no time.

Mask AP with and without the gate:
  python tools/compare_refiners.py --refiners phoenix phoenix:gate=off --weights phoenix=refiner.safetensors \\
      --data ccp wgisd sod --degrade coco_val --output comparison
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=DETAILS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="of a trained refiner, or their name")
    parser.add_argument("--encoder-weights", metavar="FILE", help="segment-anything's checkpoint, for its ViTs")
    parser.add_argument(
        "--input-size", type=int, metavar="S",
        help="side of the model input in pixels, from now on (default: as in training)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="SAFETENSORS", help="weights with their gate")
    calibration = parser.add_argument_group("calibration")
    calibration.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    calibration.add_argument(
        "--annotations", type=Path, required=True, metavar="JSON", help="ground truth, COCO or LVIS"
    )
    calibration.add_argument("--coarse", type=Path, nargs="+", default=[], metavar="JSON", help="coarse masks")
    calibration.add_argument(
        "--degrade", nargs="+", default=[], metavar="KIND", help="make coarse masks: see degrade_json.py --help"
    )
    calibration.add_argument(
        "--strengths", nargs="+", type=_fraction, default=[1 / 3, 2 / 3, 1.0], metavar="S",
        help="of degradation, from 0 to 1, fractions too (default: 1/3 2/3 1)",
    )  # fmt: skip
    calibration.add_argument(
        "--margin", type=float, metavar="G",
        help="least predicted gain of an accepted mask, as a share (default: the least at which no set loses)",
    )  # fmt: skip
    parser.add_argument("--test", type=Path, nargs="+", default=[], metavar="DIR", help="folders with coarse_*.json")
    parser.add_argument("--max-images", type=_positive, metavar="N", help="images drawn for each set (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of that draw and of degradation")
    parser.add_argument("--device", default="cpu", help="to refine on (default: cpu)")
    args = parser.parse_args(argv)
    if not args.coarse and not args.degrade:
        parser.error("nothing to calibrate on: pass --coarse or --degrade")
    if args.output.suffix != ".safetensors":
        parser.error(f"--output {args.output}: expected a name that ends in .safetensors")
    return args


def main(argv: list[str] | None = None) -> None:
    """Calibrate, and say in a line what went wrong."""
    args = parse_args(argv)
    try:
        run(args)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")


def run(args: argparse.Namespace) -> None:
    """Refine what is labelled, fit, and write the report and the weights."""
    # heavy imports stay out of the way of --help
    from tqdm import tqdm

    from phoenix_d2.offline.calibrate import calibrate, gate_figures, predict_gains
    from phoenix_d2.predictor import PhoenixRefiner

    refiner = PhoenixRefiner.from_pretrained(
        args.weights, encoder_weights=args.encoder_weights, input_size=args.input_size, device=args.device
    )
    calibration_sets, test_sets = list(load_calibration_sets(args)), list(load_test_sets(args))
    cache = MeasurementCache(args.output.with_suffix(".gate.npz"))
    num_masks = sum(len(labelled.records) for labelled in (*calibration_sets, *test_sets))
    with tqdm(total=num_masks, unit="mask", disable=None) as progress:
        known, held_out = (
            {labelled.name: measure(refiner, labelled, cache, progress) for labelled in sets}
            for sets in (calibration_sets, test_sets)
        )
    calibration = calibrate(known, margin=args.margin)
    gate = calibration.gate
    predicted = {
        **calibration.predicted_gains,
        **{name: predict_gains(gate, masks) for name, masks in held_out.items()},
    }
    measured = {**known, **held_out}
    figures = {name: gate_figures(masks, predicted[name], gate.margin) for name, masks in measured.items()}
    write_report(args.output, gate, figures, {name: (masks, predicted[name]) for name, masks in measured.items()})
    refiner.refiner.gate = gate
    refiner.save(args.output)
    print(f"Wrote {args.output}, with the report beside it.")


@dataclass(frozen=True)
class LabelledSet:
    """Coarse masks of known targets.

    Attributes:
        name: of the set.
        images: folder of the images.
        annotation_file: of the targets.
        targets: annotations by id.
        records: of a results file; each names its target in "gt_id".
    """

    name: str
    images: Path
    annotation_file: Path
    targets: Mapping[Any, Record]
    records: Sequence[Record]


def load_calibration_sets(args: argparse.Namespace) -> Iterator[LabelledSet]:
    """Every file of --coarse, and the annotations in every kind of --degrade and strength."""
    from phoenix_d2.data.degrade import degrade_annotations
    from phoenix_d2.data.mask_json import load_annotations

    annotations = load_annotations(args.annotations)
    make = partial(labelled_set, args, images=args.images, annotation_file=args.annotations, annotations=annotations)
    for file in args.coarse:
        yield make(file.stem, records=load_paired(file, annotations))
    for kind, strength in product(args.degrade, args.strengths):
        records = degrade_annotations(annotations, kind=kind, strength=strength, seed=args.seed)
        yield make(f"{kind} {strength:.2f}", records=records)


def load_test_sets(args: argparse.Namespace) -> Iterator[LabelledSet]:
    """Every coarse_*.json of the folders of --test."""
    from phoenix_d2.data.mask_json import load_annotations

    for folder in args.test:
        file = folder / "instances.json"
        annotations = load_annotations(file)
        paths = sorted(folder.glob("coarse_*.json"))
        if not paths:
            raise ValueError(f"--test {folder} holds no coarse_*.json: put the masks to refine there.")
        for path in paths:
            name = f"{folder.name}/{path.stem.removeprefix('coarse_')}"
            records = load_paired(path, annotations)
            yield labelled_set(
                args, name, images=folder / "images", annotation_file=file, annotations=annotations, records=records
            )


def load_paired(path: Path, annotations: Record) -> list[Record]:
    """The records of a results file, each with the "gt_id" of its target."""
    from phoenix_d2.data.mask_json import load_results
    from phoenix_d2.evaluation.comparison import pair_by_image

    try:
        return pair_by_image(annotations, load_results(path, annotations=annotations))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def labelled_set(
    args: argparse.Namespace,
    name: str,
    *,
    images: Path,
    annotation_file: Path,
    annotations: Record,
    records: Sequence[Record],
) -> LabelledSet:
    """The records of --max-images images, drawn alike from every set of the same annotations."""
    import numpy as np

    ids = [image["id"] for image in annotations["images"]]
    drawn = {ids[index] for index in np.random.default_rng(args.seed).permutation(len(ids))[: args.max_images]}
    chosen = [record for record in records if record["image_id"] in drawn]
    if not chosen:
        raise ValueError(
            f"The set {name!r} has no mask in the {len(drawn)} images that were drawn: raise --max-images."
        )
    targets = {annotation["id"]: annotation for annotation in annotations["annotations"]}
    return LabelledSet(name, images, annotation_file, targets, chosen)


class MeasurementCache:
    """What was measured of each set, in an .npz that is written anew after every set.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        import numpy as np

        self.path = path
        self.arrays: dict[str, Any] = {}
        if path.is_file():
            with np.load(path, allow_pickle=False) as content:
                self.arrays = dict(content)

    def get(self, key: str) -> JudgedMasks | None:
        """What was kept under a key."""
        from phoenix_d2.offline.calibrate import JudgedMasks

        if not all(f"{key}/{field.name}" in self.arrays for field in fields(JudgedMasks)):
            return None
        return JudgedMasks(**{field.name: self.arrays[f"{key}/{field.name}"] for field in fields(JudgedMasks)})

    def put(self, key: str, masks: JudgedMasks) -> None:
        """Keep and write."""
        import numpy as np

        self.arrays |= {f"{key}/{field.name}": getattr(masks, field.name) for field in fields(masks)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = self.path.with_suffix(".partial")
        with partial_path.open("wb") as file:
            np.savez_compressed(file, **self.arrays)
        os.replace(partial_path, self.path)


def measure(
    refiner: PhoenixRefiner, labelled: LabelledSet, cache: MeasurementCache, progress: tqdm[Any]
) -> JudgedMasks:
    """Refine the masks of a set and compare them with their targets, unless that was done before."""
    from phoenix_d2.data.mask_json import write_json_atomically
    from phoenix_d2.gate import EVIDENCE
    from phoenix_d2.offline.calibrate import JudgedMasks, judge_image
    from phoenix_d2.offline.job import plan_job
    from phoenix_d2.offline.journal import refiner_fingerprint

    progress.set_description(labelled.name)
    # measured without a gate, whichever the weights have
    source = [
        EVIDENCE,
        {**refiner_fingerprint(refiner), "gate": None},
        str(labelled.images.resolve()),
        labelled.records,
    ]
    key = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
    if (masks := cache.get(key)) is None:
        with TemporaryDirectory() as folder:
            path = Path(folder, "coarse.json")
            write_json_atomically(path, labelled.records)
            tasks = plan_job(path, image_folder=labelled.images, annotation_file=labelled.annotation_file).tasks
        parts = []
        for task in tasks:
            parts.append(judge_image(refiner, task, labelled.targets))
            progress.update(len(task.records))
        masks = JudgedMasks.concatenate(parts)
        cache.put(key, masks)
    else:
        progress.update(len(labelled.records))
    return masks


def write_report(
    output: Path,
    gate: RefinementGate,
    figures: Mapping[str, Mapping[str, float]],
    predictions: Mapping[str, tuple[JudgedMasks, Floats]],
) -> None:
    """Print what the gate makes of every set, and write it beside the weights as Markdown, JSON and a plot."""
    from phoenix_d2.offline.calibrate import draw_reliability
    from phoenix_d2.offline.report import markdown_table, staged_folder, without_nan

    table = markdown_table([{"set": name, **row} for name, row in figures.items()])
    with staged_folder(output.parent) as folder:
        report = {"gate": gate.to_metadata(), "sets": without_nan(figures)}
        (folder / f"{output.stem}.gate.json").write_text(json.dumps(report, indent=1))
        (folder / f"{output.stem}.gate.md").write_text(table + "\n")
        draw_reliability(predictions, folder / f"{output.stem}.gate.png")
    print(table)
    print(f"A refined mask is accepted from a predicted gain of {100 * gate.margin:g} points on.")


def _fraction(text: str) -> float:
    return float(Fraction(text))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return value


if __name__ == "__main__":
    main()
