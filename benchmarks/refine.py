#!/usr/bin/env python
"""Measure what refining costs a mask and pass, inside the decoder and outside of it, and the memory that it takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from phoenix_d2.arguments import errors_in_words, positive_int

EXAMPLE = """\
examples:
  python benchmarks/refine.py --output output/refine.json
  python benchmarks/refine.py --output output/refine.json --masks 1 128 --passes 1 --chunk-size 8
  python benchmarks/refine.py --output output/refine.json --device cuda --chunk-size 64

Discs in an image of 480 x 640 pixels, refined by SAM's decoder with random weights behind a ViT-B that is left out: its
embedding is drawn at random. Without a gate. Each row is a process of its own, on one thread. Times are CPU time, which
other work on the machine disturbs least, the least of the repeats; on CUDA, time of a clock. A mask that a pass left as
it was takes no part in the next: only those that do count. What the image costs whatever its masks (resizing it, its
edges) is left out. Memory is by how much the peak exceeds what was in use before, less the refined masks themselves.

The last columns are what SAMRefiner takes for the same (its authors' code, another run, on a CPU with tuned malloc)
over what is taken here.
"""

_SIZE = (480, 640)
# ms a mask and pass of SAMRefiner (0b2db8c): all, and its decoder, by the number of masks; see docs/performance.md
_PEER = {1: (203.0, 107.0), 128: (306.0, 156.0)}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="JSON", help="for the figures")
    parser.add_argument(
        "--masks", type=positive_int, nargs="+", default=[1, 8, 128, 1000], metavar="N", help="a row each"
    )
    parser.add_argument("--passes", type=positive_int, default=5, metavar="N", help="default: 5")
    parser.add_argument(
        "--chunk-size", type=positive_int, metavar="N", help="masks decoded together (default: the refiner's)"
    )
    parser.add_argument("--repeats", type=positive_int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words(ImportError, RuntimeError):
        print(run(args))


def run(args: argparse.Namespace) -> str:
    """Measure row by row, write the figures after each, return a table of them."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from tqdm import tqdm

    from phoenix_d2.data.mask_json import write_json_atomically
    from phoenix_d2.tables import format_table

    settings = {"passes": args.passes, "repeats": args.repeats, "device": args.device, "chunk_size": args.chunk_size}
    rows = []
    for num_masks in tqdm(args.masks, unit="row", disable=None):
        # the peak memory of a process never falls
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            rows.append(process.submit(measure, num_masks, **settings).result())
        write_json_atomically(args.output, rows)
    return format_table(rows, float_format=".1f")


def measure(
    num_masks: int,
    *,
    passes: int,
    repeats: int,
    device: str,
    chunk_size: int | None,
    encoder: str = "vit_b",
    size: tuple[int, int] = _SIZE,
) -> dict[str, Any]:
    """The row of so many masks in an image of (height, width) pixels, with the decoder that belongs to an encoder."""
    import torch

    from phoenix_d2.options import RefineOptions

    torch.set_num_threads(1)
    options = RefineOptions(gate="off", num_iters=passes, chunk_size=chunk_size)
    refiner = stubbed_refiner(encoder, device=device)
    image, masks = scene(num_masks, size)
    megabytes = -reset_peak_memory(device)
    # the first use of a network is slower
    refiner.refine(image, masks[:1], options=options)
    decode, prepare = refiner.decode, refiner._encode_windows
    calls: list[tuple[float, int]] = []
    preparing: list[float] = []

    def timed(embeddings: Any, prompts: Any) -> Any:
        start = clock(device)
        prediction = decode(embeddings, prompts)
        calls.append((clock(device) - start, len(prompts)))
        return prediction

    def timed_preparation(*arguments: Any) -> Any:
        start = clock(device)
        features = prepare(*arguments)
        preparing.append(clock(device) - start)
        return features

    refiner.decode, refiner._encode_windows = timed, timed_preparation
    times = []
    for _ in range(repeats):
        calls.clear()
        preparing.clear()
        start = clock(device)
        refiner.refine(image, masks, options=options)
        total = clock(device) - start - sum(preparing)
        in_decoder, decoded = map(sum, zip(*calls, strict=True))
        times.append((1e3 * total / decoded, 1e3 * in_decoder / decoded))
    megabytes += peak_memory(device) - masks.nbytes / 1e6
    total, decoder = min(times)
    row = {
        "masks": num_masks,
        "passes": passes,
        "chunk": options.masks_at_once(device),
        "device": device,
        "ms": total,
        "decoder_ms": decoder,
        "outside_ms": total - decoder,
        "memory_MB": megabytes,
    }
    if num_masks in _PEER and encoder == "vit_b":
        peer_total, peer_decoder = _PEER[num_masks]
        row["peer_over_ours"] = peer_total / total
        row["peer_over_ours_outside"] = (peer_total - peer_decoder) / (total - decoder)
    return row


def clock(device: str) -> float:
    """Seconds of CPU time; of a clock, once all work is done, on CUDA."""
    import time

    import torch

    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def reset_peak_memory(device: str) -> float:
    """Forget peaks of memory; returns the MB in use."""
    import torch

    if device == "cpu":
        # Linux alone can forget; elsewhere the peak of the whole process is taken
        refs = Path("/proc/self/clear_refs")
        if refs.exists():
            refs.write_text("5")
    else:
        torch.cuda.reset_peak_memory_stats(device)
    return peak_memory(device)


def peak_memory(device: str) -> float:
    """MB at the most, since they were forgotten."""
    import resource

    import torch

    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e3


def stubbed_refiner(encoder: str, *, device: str) -> Any:
    """A refiner of random weights, whose encoder answers with the same random embedding."""
    import torch
    from torch import nn

    from phoenix_d2.sam.build import build_refiner
    from phoenix_d2.sam.detail import DETAIL_CHANNELS, EMBED_DIM, FOLD
    from phoenix_d2.sam.encoders import get_encoder

    class Stub(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return embedding.expand(len(images), -1, -1, -1)

    torch.manual_seed(0)
    refiner = build_refiner(encoder).eval().to(device)
    side = refiner.prompt_encoder.image_embedding_size[0]
    detail = DETAIL_CHANNELS * FOLD**2 if get_encoder(encoder).detail else 0
    embedding = torch.randn(1, EMBED_DIM + detail, side, side, device=device)
    refiner.image_encoder = Stub()
    return refiner


def scene(num_masks: int, size: tuple[int, int]) -> Any:
    """A random (3, H, W) uint8 image and (N, H, W) masks, discs of several sizes."""
    import torch

    height, width = size
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    centres = torch.rand(num_masks, 2, generator=generator) * torch.tensor([width, height])
    radii = (0.1 + 0.2 * torch.rand(num_masks, generator=generator)) * min(size)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    masks = torch.zeros(num_masks, height, width, dtype=torch.bool)
    for mask, centre, radius in zip(masks, centres, radii, strict=True):
        mask.copy_((x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2)
    return image, masks


if __name__ == "__main__":
    main()
