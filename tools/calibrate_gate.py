#!/usr/bin/env python
"""Calibrate the gate that keeps a coarse mask where the refined one is not expected to be better."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from phoenix_d2.arguments import (
    add_cache_arguments,
    add_device_argument,
    errors_in_words,
    positive_int,
    seed,
    strength,
    use_embedding_cache,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from phoenix_d2.gate import RefinementGate
    from phoenix_d2.offline.calibrate import Floats, JudgedMasks
    from phoenix_d2.offline.calibration_sets import LabelledSet

DETAILS = """\
example:
  python tools/calibrate_gate.py --weights model_final.pth --output refiner.safetensors \\
      --images coco_val/images --annotations coco_val/instances.json --degrade mask_head polygon morphological \\
      --coarse attacked.json --test ccp wgisd sod

The masks of --coarse are COCO results: those of your detector on a labelled set make a gate for that detector. A record
may name in "gt_id" the annotation that it is a prediction of; else that is the object that it overlaps most, and masks
that overlap none by half are left out. With --degrade, the annotations themselves are made coarse, in each kind at
each of --strengths (see degrade_json.py); composed pictures (--more, see compose_dataset.py) show the gate objects with
exact outlines. --test names folders of instances.json, images/ and coarse_*.json, which only
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
    calibration.add_argument(
        "--more", type=Path, nargs="+", default=[], metavar="DIR",
        help="further folders of instances.json and images/, whose annotations are made coarse too",
    )  # fmt: skip
    calibration.add_argument("--coarse", type=Path, nargs="+", default=[], metavar="JSON", help="coarse masks")
    calibration.add_argument(
        "--degrade", nargs="+", default=[], metavar="KIND", help="make coarse masks: see degrade_json.py --help"
    )
    calibration.add_argument(
        "--strengths", nargs="+", type=strength, default=[1 / 3, 2 / 3, 1.0], metavar="S",
        help="of degradation, from 0 to 1, fractions too (default: 1/3 2/3 1)",
    )  # fmt: skip
    calibration.add_argument(
        "--margin", type=strength, metavar="G",
        help="predicted gain that an accepted mask must have beyond a point where its source is unknown, as a share "
        "(default: such that no set loses)",
    )  # fmt: skip
    parser.add_argument("--test", type=Path, nargs="+", default=[], metavar="DIR", help="folders with coarse_*.json")
    parser.add_argument("--max-images", type=positive_int, metavar="N", help="images drawn for each set (default: all)")
    parser.add_argument("--seed", type=seed, default=0, help="of that draw and of degradation")
    add_cache_arguments(parser)
    add_device_argument(parser)
    args = parser.parse_args(argv)
    if not args.coarse and not args.degrade:
        parser.error("nothing to calibrate on: pass --coarse or --degrade")
    if args.more and not args.degrade:
        parser.error("--more is of annotations to be made coarse: pass --degrade")
    if args.output.suffix != ".safetensors":
        parser.error(f"--output {args.output}: expected a name that ends in .safetensors")
    return args


def main(argv: list[str] | None = None) -> None:
    """Calibrate, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words(interrupted="interrupted; the same command goes on"):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Refine what is labelled, fit, and write the report and the weights."""
    # heavy imports stay out of the way of --help
    from tqdm import tqdm

    from phoenix_d2.offline.calibrate import Known, calibrate, gate_figures, predict
    from phoenix_d2.offline.calibration_sets import MeasurementCache, measure
    from phoenix_d2.predictor import PhoenixRefiner

    refiner = PhoenixRefiner.from_pretrained(
        args.weights, encoder_weights=args.encoder_weights, input_size=args.input_size, device=args.device
    )
    use_embedding_cache(args, refiner)
    calibration_sets, test_sets = list(load_calibration_sets(args)), list(load_test_sets(args))
    names = [labelled.name for labelled in (*calibration_sets, *test_sets)]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Several sets are called {', '.join(repeated)}: rename files or folders, or leave some out.")
    cache = MeasurementCache(args.output.with_suffix(".gate.npz"))
    num_masks = sum(len(labelled.records) for labelled in (*calibration_sets, *test_sets))
    with tqdm(total=num_masks, unit="mask", disable=None) as progress:

        def measured_set(labelled: LabelledSet) -> JudgedMasks:
            progress.set_description(labelled.name)
            return measure(refiner, labelled, cache, advance=progress.update)

        known, held_out = (
            {labelled.name: measured_set(labelled) for labelled in sets} for sets in (calibration_sets, test_sets)
        )
    calibration = calibrate(known, margin=args.margin)
    gate = calibration.gate
    predictions = {
        **calibration.predictions,
        **{name: {level: predict(gate, masks, level) for level in get_args(Known)} for name, masks in held_out.items()},
    }
    measured = {**known, **held_out}
    figures = {name: gate_figures(masks, predictions[name], gate.margin) for name, masks in measured.items()}
    write_report(
        args.output,
        gate,
        figures,
        {name: (masks, predictions[name]["source"].gains) for name, masks in measured.items()},
    )
    refiner.refiner.gate = gate
    refiner.save(args.output)
    print(f"Wrote {args.output}, with the report beside it.")


def load_calibration_sets(args: argparse.Namespace) -> Iterator[LabelledSet]:
    """Every file of --coarse, and the annotations, those of --more too, in every kind of --degrade and strength."""
    from dataclasses import replace

    from phoenix_d2.offline.calibration_sets import LabelledFolder

    folder = LabelledFolder(args.images, args.annotations, max_images=args.max_images, seed=args.seed)
    stems = [path.stem for path in args.coarse]
    for path in args.coarse:
        # detectors give their results the same name in folders of their own
        yield folder.from_file(path, name=path.stem if stems.count(path.stem) == 1 else str(path))
    yield from folder.degraded(args.degrade, args.strengths)
    for path in args.more:
        folder = LabelledFolder(path / "images", path / "instances.json", max_images=args.max_images, seed=args.seed)
        for labelled in folder.degraded(args.degrade, args.strengths):
            yield replace(labelled, name=f"{path.name} {labelled.name}")


def load_test_sets(args: argparse.Namespace) -> Iterator[LabelledSet]:
    """Every coarse_*.json of the folders of --test."""
    from phoenix_d2.offline.calibration_sets import LabelledFolder

    for data in args.test:
        paths = sorted(data.glob("coarse_*.json"))
        if not paths:
            raise ValueError(f"--test {data} holds no coarse_*.json: put the masks to refine there.")
        folder = LabelledFolder(data / "images", data / "instances.json", max_images=args.max_images, seed=args.seed)
        for path in paths:
            yield folder.from_file(path, name=f"{data.name}/{path.stem.removeprefix('coarse_')}")


def write_report(
    output: Path,
    gate: RefinementGate,
    figures: Mapping[str, Mapping[str, float]],
    predictions: Mapping[str, tuple[JudgedMasks, Floats]],
) -> None:
    """Print what the gate makes of every set, and write it beside the weights as Markdown, JSON and a plot."""
    from phoenix_d2.evidence import ENOUGH_MASKS
    from phoenix_d2.files import staged_folder
    from phoenix_d2.offline.calibrate import draw_reliability
    from phoenix_d2.tables import format_table, without_nan

    num_masks = sum(len(masks) for masks, _ in predictions.values())
    if num_masks < ENOUGH_MASKS:
        print(f"warning: {num_masks} masks say little of a refiner; {ENOUGH_MASKS} or more make a gate to rely on")
    table = format_table([{"set": name, **row} for name, row in figures.items()])
    with staged_folder(output.parent) as folder:
        report = {"gate": gate.to_metadata(), "sets": without_nan(figures)}
        (folder / f"{output.stem}.gate.json").write_text(json.dumps(report, indent=1))
        (folder / f"{output.stem}.gate.md").write_text(table + "\n")
        draw_reliability(predictions, folder / f"{output.stem}.gate.png")
    print(table)
    unknown, known = 100 * (gate.min_gain + gate.margin), 100 * gate.min_gain
    print(
        "IoU and boundary IoU (percent): of the coarse masks, of all refined ones, of what the gate accepts with the "
        "set as source and with each image for itself, and of the better of each pair (oracle). Gain kept and harm "
        "avoided are shares of what refining all masks adds to those that gain, and takes from those that lose.\n"
        f"Masks are accepted from a predicted gain of {unknown:g} points on, of well known sources from {known:g} on."
    )


if __name__ == "__main__":
    main()
