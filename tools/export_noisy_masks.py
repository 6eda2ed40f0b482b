#!/usr/bin/env python
"""Write adversarially perturbed masks to disk in SegRefiner's layout, so that other refiners train on them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from phoenix_d2.arguments import add_attack_arguments, add_device_argument, errors_in_words, load_attack, seed

DETAILS = """\
example:
  python tools/export_noisy_masks.py --annotations instances.json --images train2017 --output data --name coco \\
      --weights phoenix_tiny --config phoenix_tiny.yaml

Writes OUTPUT/NAME/{gt,coarse,coarse_expand}/ANNOTATION.png and adds NAME to OUTPUT/collection_hr.json, the index
that SegRefiner's segrefiner_hr.py reads (data_root OUTPUT/, collection_datasets ['NAME']). Annotations of at most
MODEL.PHOENIX.DATA.MIN_AREA pixels, and crowds, are left out. The index is written at the end; until then finished
images are noted in OUTPUT/NAME.json.partial, and --resume goes on with them.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=DETAILS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="COCO or LVIS")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="SegRefiner's data_root")
    parser.add_argument("--name", type=_folder_name, required=True, help="of the data set in the index")
    add_attack_arguments(parser, required=True)
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--resume", action="store_true", help="go on with what a killed run had finished")
    add_device_argument(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Export, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words(interrupted="interrupted: go on with --resume"):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Check everything, perturb image by image, write the index."""
    # heavy imports stay out of the way of --help
    from dataclasses import replace

    from tqdm import tqdm

    from phoenix_d2.config import load_config
    from phoenix_d2.data.mask_json import write_json_atomically
    from phoenix_d2.offline.export_noise import INDEX, export_image, merged_index, summary, trainable_tasks
    from phoenix_d2.offline.job import plan_job
    from phoenix_d2.offline.journal import Journal, fingerprint_of
    from phoenix_d2.offline.perturb import adversarial_alone

    min_area = load_config(args.config).MODEL.PHOENIX.DATA.MIN_AREA
    attack = load_attack(args.weights, args.config, args.device)
    attack = replace(attack, sampler=adversarial_alone(attack.sampler))
    job = plan_job(args.annotations, image_folder=args.images)
    tasks = trainable_tasks(job.tasks, min_area=min_area)
    if not tasks:
        raise ValueError(f"{args.annotations} has no annotation of more than {min_area} pixels to export.")
    merged_index(args.output, args.name, [])
    noise = attack.fingerprint() | {"seed": args.seed}
    journal = Journal(args.output / f"{args.name}.json")
    # without a journal it is no unfinished one
    if (args.output / args.name).exists() and not journal.folder.exists():
        raise ValueError(f"{args.output / args.name} exists: give another --name, or remove it.")
    finished = journal.begin(fingerprint_of(attack.refiner, job, update_boxes=False) | noise, resume=args.resume)
    with journal.file(journal.next_file()) as file:
        for task in tqdm([t for t in tasks if t.image_id not in finished], unit="image", disable=None):
            file.append(
                export_image(
                    attack.refiner.refiner,
                    task,
                    root=args.output,
                    name=args.name,
                    sampler=attack.sampler,
                    dense_prompt=attack.dense_prompt,
                    seed=args.seed,
                )
            )
    outcomes = journal.outcomes()
    ordered = [outcomes[task.image_id] for task in tasks]
    entries = [entry for outcome in ordered for entry in outcome.changes if entry is not None]
    write_json_atomically(args.output / INDEX, merged_index(args.output, args.name, entries))
    journal.remove()
    print(f"{summary(ordered)}\nwritten to {args.output / args.name}, listed in {args.output / INDEX}")


def _folder_name(text: str) -> str:
    if not re.fullmatch(r"[\w-]+", text):
        raise argparse.ArgumentTypeError(f"expected letters, digits, - and _, got {text!r}")
    return text


if __name__ == "__main__":
    main()
