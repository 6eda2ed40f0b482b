#!/usr/bin/env python
"""Measure what encoders cost: parameters, GFLOPs, embedding, memory, seconds an image and milliseconds a mask."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from phoenix_d2.arguments import errors_in_words

EXAMPLE = """\
examples:
  python benchmarks/encoders.py --output output/encoders
  python benchmarks/encoders.py --output output/encoders --encoders vit_b --input-size 512

Each encoder is measured in a process of its own, with random weights, on one thread, and the JSON file is written
after each: rows measured before stay, or are replaced by new ones of the same encoder and input size.

A GFLOP is 10^9 multiplications with their additions. Memory is the process' peak while it encodes one image and
refines its masks. Times are CPU time, which other work on the machine disturbs least; a mask is refined in five
passes, the encoder apart.
"""

_NUM_MASKS = 8
# CPU seconds after which nothing more is repeated
_ENOUGH = 5.0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="for encoders.json and .md")
    parser.add_argument("--encoders", nargs="+", metavar="NAME", help="default: all that are registered")
    parser.add_argument("--input-size", type=int, default=0, metavar="S", help="pixels a side (default: each its own)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words(ImportError):
        print(run(args))


def run(args: argparse.Namespace) -> str:
    """Measure encoder by encoder and write both files after each."""
    import json
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from tqdm import tqdm

    from phoenix_d2.files import staged_folder
    from phoenix_d2.sam.encoders import ENCODERS, get_encoder
    from phoenix_d2.tables import format_table

    names = args.encoders or list(ENCODERS)
    sizes = {name: get_encoder(name).check_input_size(args.input_size) for name in names}
    known = args.output / "encoders.json"
    rows = {(row["encoder"], row["input"]): row for row in json.loads(known.read_text())} if known.is_file() else {}
    for name, size in (progress := tqdm(sizes.items(), unit="encoder", disable=None)):
        progress.set_postfix_str(name)
        # the peak memory of a process never falls
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            rows[name, size] = process.submit(measure, name, size).result()
        table = format_table(list(rows.values()), float_format=".2f")
        with staged_folder(args.output) as folder:
            (folder / "encoders.json").write_text(json.dumps(list(rows.values()), indent=1))
            (folder / "encoders.md").write_text(table + "\n")
    return table


def measure(name: str, input_size: int) -> dict[str, Any]:
    """The row of one encoder: the fastest of a few runs, or one that takes long."""
    import resource
    from time import process_time

    import torch

    from phoenix_d2.sam.build import build_refiner

    torch.set_num_threads(1)
    torch.manual_seed(0)
    refiner = build_refiner(name, input_size=input_size).eval()
    encoder = refiner.image_encoder
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    image, masks = _scene(input_size)

    encoding: list[float] = []
    refining: list[float] = []
    encoder.register_forward_pre_hook(lambda *_: encoding.append(-process_time()))
    encoder.register_forward_hook(lambda *_: encoding.append(encoding.pop() + process_time()))
    while sum(encoding) + sum(refining) < _ENOUGH:
        start = process_time()
        refiner.refine(image, masks)
        refining.append(process_time() - start - encoding[-1])
    measured = {
        "memory_GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "s_an_image": min(encoding),
        "ms_a_mask": 1e3 * min(refining) / _NUM_MASKS,
    }
    # last, since it runs the encoder again and takes its weights away
    embedding, giga_flops = _trace(encoder, input_size)
    return {
        "encoder": name,
        "input": input_size,
        "parameters_M": parameters / 1e6,
        "GFLOPs": giga_flops,
        "embedding": embedding,
        **measured,
    }


def _scene(side: int) -> Any:
    """A random (3, S, S) uint8 image and (N, S, S) masks, overlapping boxes of several sizes."""
    import torch

    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    masks = torch.zeros(_NUM_MASKS, side, side, dtype=torch.bool)
    for i, mask in enumerate(masks):
        start, extent = i * side // (2 * _NUM_MASKS), (i + 4) * side // (2 * _NUM_MASKS)
        mask[start : start + extent, start : start + extent // 2] = True
    return image, masks


def _trace(encoder: Any, side: int) -> tuple[str, float]:
    """The embedding's shape and the encoder's GFLOPs, on tensors without values: no encoder is too large for that."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shape = encoder.to("meta")(torch.zeros(1, 3, side, side, device="meta")).shape
    # it counts multiplications and additions apart
    return " x ".join(map(str, shape[1:])), counter.get_total_flops() / 2e9


if __name__ == "__main__":
    main()
