#!/usr/bin/env python
"""Measure what a step of the attack on SAM's decoder costs a mask, beside the same attack on segment-anything's own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from phoenix_d2.arguments import errors_in_words

# benchmarks are not installed
sys.path.append(str(Path(__file__).parents[1]))

EXAMPLE = """\
examples:
  python benchmarks/perturbation.py --output output/perturbation.json
  python benchmarks/perturbation.py --output output/perturbation.json --device cuda --masks 32

Discs as targets, SAM's decoder with random weights, a random image embedding, one thread. A step is a decode and the
gradient of the perturbation embeddings; the decode that follows the last step is shared out among them. Times are CPU
time, which other work on the machine disturbs least, the least of the repeats, which take turns; on CUDA, time of a
clock. "segment-anything" is its own decoder with the same weights, attacked in the same way; the masks of both must
agree.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="JSON", help="for the figures")
    parser.add_argument("--masks", type=int, default=4, metavar="N", help="attacked together (default: 4)")
    parser.add_argument("--embeddings", type=int, default=50, metavar="P", help="of the perturbation (default: 50)")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="turns (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args(argv)
    if min(args.masks, args.embeddings, args.steps, args.repeats) < 1:
        parser.error("--masks, --embeddings, --steps and --repeats are at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words(ImportError, RuntimeError):
        print(run(args))


def run(args: argparse.Namespace) -> str:
    """Measure both, write the figures, return a table of them.

    Raises:
        ValueError: the two attacks make different masks.
    """
    import torch

    from benchmarks.refine import clock, scene, stubbed_refiner
    from phoenix_d2.attack import attackable_decoder
    from phoenix_d2.data.mask_json import write_json_atomically
    from phoenix_d2.ops.masks import mask_iou
    from phoenix_d2.tables import format_table

    torch.set_num_threads(1)
    refiner = stubbed_refiner("vit_b", device=args.device)
    image, masks = scene(args.masks, (480, 640))
    coverage = refiner.frame(tuple(masks.shape[1:])).masks_to_low_res(masks.to(args.device))
    embeddings = refiner.encode_image(image[None]).expand(args.masks, -1, -1, -1)
    decoders = {
        "segment-anything": plain_decoder(refiner, embeddings, coverage),
        "phoenix_d2": attackable_decoder(refiner, embeddings, coverage, dense_prompt="none"),
    }
    seconds, results = dict.fromkeys(decoders, float("inf")), {}
    for _ in range(args.repeats):
        for name, decode in decoders.items():
            start = clock(args.device)
            results[name] = _attack(decode, coverage >= 0.5, args.embeddings, args.steps)
            seconds[name] = min(seconds[name], clock(args.device) - start)
    agreement = float(mask_iou(*results.values()).mean())
    if agreement < 0.99:
        raise ValueError(f"The masks of both attacks agree by an IoU of {agreement:.4f} only: one of them is wrong.")
    rows = [
        {
            "decoder": name,
            "masks": args.masks,
            "embeddings": args.embeddings,
            "ms": 1e3 * value / args.masks / args.steps,
            "share": value / seconds["segment-anything"],
            "agreement": agreement,
        }
        for name, value in seconds.items()
    ]
    write_json_atomically(args.output, rows)
    return format_table(rows, float_format=".3g")


def _attack(decode: Any, target_masks: Any, num_embeddings: int, num_steps: int) -> Any:
    """The masks after so many steps."""
    import torch

    from phoenix_d2.perturbation.adversarial import perturb_masks
    from phoenix_d2.perturbation.guidance import Guide, guidance_masks

    guides = torch.full((len(target_masks),), int(Guide.EXPANSION), device=target_masks.device)
    # no mask is ever within a band that lies below 0, so that none finishes early
    thresholds = torch.full((len(target_masks),), -1.0, device=target_masks.device)
    return perturb_masks(
        decode,
        target_masks,
        guidance_masks(target_masks, guides),
        iou_thresholds=thresholds,
        valid=None,
        generator=torch.Generator().manual_seed(0),
        num_embeddings=num_embeddings,
        # decodes, of which the last gives the result
        max_steps=num_steps + 1,
    ).masks


def plain_decoder(refiner: Any, embeddings: Any, coverage: Any) -> Any:
    """`attackable_decoder` with segment-anything's decoder, of the same weights; masks of one image."""
    import torch
    from segment_anything.modeling import MaskDecoder, TwoWayTransformer

    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    decoder = MaskDecoder(transformer=transformer, transformer_dim=256).to(embeddings.device)
    decoder.load_state_dict(refiner.mask_decoder.state_dict(), strict=True)
    with torch.no_grad():
        sparse, _ = refiner.prompt_encoder.encode(refiner.prompter(coverage, stride=refiner.stride))
        dense = refiner.prompt_encoder.no_mask_embeddings(len(sparse))
        positions = refiner.prompt_encoder.get_dense_pe()

    def decode(perturbation: Any, active: Any) -> Any:
        tokens = torch.cat([perturbation, sparse[active]], dim=1)
        return decoder.predict_masks(embeddings[:1], positions, tokens, dense[active])[0][:, 0]

    return decode


if __name__ == "__main__":
    main()
