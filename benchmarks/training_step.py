#!/usr/bin/env python
"""Measure where the time of a training step goes, with the frozen encoder's features in the cache."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from phoenix_d2.arguments import errors_in_words

# benchmarks are not installed
sys.path.append(str(Path(__file__).parents[1]))

EXAMPLE = """\
examples:
  python benchmarks/training_step.py --output output/training_step.json
  python benchmarks/training_step.py --output step.json --config phoenix_lvis.yaml --weights "" --device cuda

Drawn pictures, one view an image, all of them in the cache before the first step that counts; batches are made in
this process. Times are CPU time on one thread, which other work on the machine disturbs least; on CUDA, time of a
clock. A part does not contain the others: "decoder" is forward, in the attack and the cascade too, and backward, that
of a trained neck of the encoder included, whose forward pass is "neck"; "losses" forward and backward, as far as
to what the decoder said; "perturbation" what else the attack does: gradients, above all.
"""

_OVERHEAD = ("data", "prompts", "losses")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="JSON", help="for the figures")
    parser.add_argument("--config", default="phoenix_tiny.yaml", metavar="FILE", help="default: phoenix_tiny.yaml")
    parser.add_argument(
        "--weights", default="phoenix_tiny",
        help='of a trained refiner, else attacks end at once; "" for random ones (default: phoenix_tiny)',
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="that count (default: 10)")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="drawn (default: 8)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args(argv)
    if min(args.steps, args.images) < 1:
        parser.error("--steps and --images are at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and say in a line what went wrong."""
    args = parse_args(argv)
    with errors_in_words(ImportError, RuntimeError):
        print(run(args))


def run(args: argparse.Namespace) -> str:
    """Measure, write the figures, return a table of them."""
    import torch

    from phoenix_d2.config import load_config
    from phoenix_d2.data.mask_json import write_json_atomically
    from phoenix_d2.tables import format_table

    torch.set_num_threads(1)
    cfg = load_config(args.config)
    cfg.MODEL.DEVICE = args.device
    with TemporaryDirectory() as folder:
        seconds = measure(cfg, Path(folder), weights=args.weights, num_steps=args.steps, num_images=args.images)
    total = sum(seconds.values())
    rows = [
        {"part": part, "ms a step": 1e3 * value / args.steps, "share": value / total} for part, value in seconds.items()
    ]
    overhead = sum(seconds[part] for part in _OVERHEAD)
    rows.append({"part": ", ".join(_OVERHEAD), "ms a step": 1e3 * overhead / args.steps, "share": overhead / total})
    write_json_atomically(args.output, rows)
    return format_table(rows, float_format=".3g")


def measure(cfg: Any, folder: Path, *, weights: str, num_steps: int, num_images: int) -> dict[str, float]:
    """Seconds of each part, over all steps that count.

    Args:
        cfg: of a training; its data are replaced by drawn pictures.
        folder: for these and the cache.
        weights: of a trained refiner, by name or path; "" for random ones.
        num_steps: that count; as many as it takes to fill the cache come before.
        num_images: drawn.
    """
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    import phoenix_d2.modeling  # noqa: F401  # registers the architectures
    from phoenix_d2.data.build import build_train_loader
    from phoenix_d2.data.datasets import register_folders
    from phoenix_d2.data.datasets.drawn import draw_dataset
    from phoenix_d2.engine.optimizer import build_clipper, build_optimizer
    from phoenix_d2.sam.checkpoint import load_trained
    from phoenix_d2.sam.pretrained import find_weights

    draw_dataset(folder / "drawn", num_images=num_images, image_size=(480, 640))
    register_folders([str(folder / "drawn")])
    cfg.DATASETS.TRAIN = (str(folder / "drawn"),)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.PHOENIX.DATA.NUM_VIEWS = 1
    cfg.MODEL.PHOENIX.FEATURE_CACHE = str(folder / "cache")
    model = build_model(cfg).train()
    if weights:
        load_trained(model.refiner, find_weights(weights))
    batches, optimizer = iter(build_train_loader(cfg)), build_optimizer(cfg, model)
    clip = build_clipper(cfg, model)
    stopwatch = Stopwatch(cfg.MODEL.DEVICE)
    _instrument(model, stopwatch)

    warm_up = -(-num_images // cfg.SOLVER.IMS_PER_BATCH)
    with EventStorage() as storage:
        for step in range(warm_up + num_steps):
            if step == warm_up:
                stopwatch.seconds.clear()
            with stopwatch.part("data"):
                batch = next(batches)
            with stopwatch.part("rest of the step"):
                loss = sum(model(batch).values())
            with stopwatch.part("decoder"):
                optimizer.zero_grad()
                loss.backward()
            with stopwatch.part("optimizer"):
                if clip is not None:
                    clip()
                optimizer.step()
            storage.step()
    return stopwatch.seconds


class Stopwatch:
    """Time by part; what runs within another part is not counted there.

    Args:
        device: that work is done on.
    """

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block as this part."""
        self._lap()
        self._running.append(name)
        try:
            yield
        finally:
            self._lap()
            self._running.pop()

    def _lap(self) -> None:
        from benchmarks.refine import clock

        now = clock(self._device)
        if self._running:
            name = self._running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


def _instrument(model: Any, stopwatch: Stopwatch) -> None:
    """Count the calls within a `Phoenix` model."""

    def counted(name: str, function: Any, *arguments: Any, **keywords: Any) -> Any:
        with stopwatch.part(name):
            return function(*arguments, **keywords)

    refiner, neck = model.refiner, model.cached_encoder.neck
    neck.forward = partial(counted, "neck", neck.forward)
    model.load_batch = partial(counted, "data", model.load_batch)
    model.perturb = partial(counted, "perturbation", model.perturb)
    refiner.prompter = _CountedPrompter(refiner.prompter, stopwatch)
    refiner.decode_embeddings = partial(counted, "decoder", refiner.decode_embeddings)
    refiner.prompt_encoder.encode = partial(counted, "prompts", refiner.prompt_encoder.encode)
    model.criterion.forward = partial(counted, "losses", partial(_backward_at_once, model.criterion.forward))


class _CountedPrompter:
    """A prompter whose calls count as prompts."""

    def __init__(self, prompter: Any, stopwatch: Stopwatch) -> None:
        self._prompter = prompter
        self._stopwatch = stopwatch

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        with self._stopwatch.part("prompts"):
            return self._prompter(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prompter, name)


def _backward_at_once(criterion: Any, prediction: Any, *arguments: Any, **keywords: Any) -> Any:
    """The criterion, and its gradients as far as the prediction; the one loss that comes back leads on from there."""
    import torch

    given = {field.name: getattr(prediction, field.name) for field in fields(prediction)}
    leaves = {name: value.detach().requires_grad_() for name, value in given.items() if value is not None}
    losses, diagnostics = criterion(type(prediction)(**leaves), *arguments, **keywords)
    torch.autograd.backward(sum(losses.values()))
    terms = [(given[name] * leaf.grad).sum() for name, leaf in leaves.items() if leaf.grad is not None]
    return {"loss": sum(terms)}, diagnostics


if __name__ == "__main__":
    main()
