"""Command-line arguments that several tools share, their types, and what they say; light, so that `--help` is quick."""

from __future__ import annotations

import sys
from argparse import REMAINDER, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import _ActionsContainer

    from phoenix_d2.baselines import CropRefiner
    from phoenix_d2.offline.perturb import Attack
    from phoenix_d2.offline.run import RunOptions
    from phoenix_d2.predictor import PhoenixRefiner


def add_refiner_arguments(parser: ArgumentParser, *, classical: bool = True) -> None:
    """Which refiner, of what weights, with what options; see `load_refiner`.

    Args:
        parser: gets the arguments.
        classical: whether the tool takes refiners without a network too.
    """
    others = ", grabcut or morphology" if classical else ""
    group = parser.add_argument_group("refiner")
    group.add_argument(
        "--refiner", metavar="NAME",
        help=f"phoenix, samrefiner (its --weights are a decoder before Phoenix training){others} "
        "(default: MODEL.REFINER.NAME of the config, else phoenix)",
    )  # fmt: skip
    group.add_argument(
        "--weights", metavar="FILE",
        help="of a trained refiner: a file, or the name of weights that come with the package "
        "(default: MODEL.REFINER.WEIGHTS of the config, else phoenix_tiny for phoenix)",
    )  # fmt: skip
    group.add_argument(
        "--config", metavar="FILE",
        help="path of a config, or the name of one in configs/, whose MODEL.REFINER replaces, where its keys are not "
        "None, the options stored with the weights; needs Detectron2",
    )  # fmt: skip
    group.add_argument(
        "--num-iters",
        type=positive_int,
        metavar="T",
        help="most passes of the cascade (default: as stored with the weights; 5 for samrefiner)",
    )
    group.add_argument(
        "--gate", choices=("auto", "calibrated", "fixed", "off"),
        help="which refined masks replace coarse ones: off, all of them, where you know that yours are poor; "
        "calibrated, those that the gate of the weights expects to be better; fixed, those within "
        "MODEL.REFINER.GATE_MIN_IOU and GATE_MIN_OVERLAP; auto, calibrated where the weights have a gate, else off "
        "(default: as stored with the weights, auto for phoenix_tiny)",
    )  # fmt: skip
    group.add_argument(
        "opts", nargs=REMAINDER, metavar="KEY VALUE", help="overrides of the config, at the end of the command"
    )
    add_cache_arguments(parser)


def add_cache_arguments(parser: ArgumentParser) -> None:
    """Where embeddings are kept, and how many; see `use_embedding_cache`."""
    group = parser.add_argument_group("embedding cache")
    group.add_argument(
        "--embedding-cache", metavar="DIR",
        help="keep what the encoder makes of images and zoomed windows in a folder, for later runs of any tool; "
        "embeddings are then rounded to half precision, found or not (default: computed every time)",
    )  # fmt: skip
    group.add_argument(
        "--embedding-cache-gb", type=float, default=10.0, metavar="GB",
        help="limit of that folder; the least recently used goes first (default: 10)",
    )  # fmt: skip


def use_embedding_cache(args: Namespace, refiner: PhoenixRefiner | CropRefiner) -> None:
    """Let a refiner with a network use the cache that `add_cache_arguments` asked for, if any.

    Raises:
        OSError: the folder cannot be made.
        ValueError: it is a file, or the limit is not a positive number.
    """
    from phoenix_d2.predictor import PhoenixRefiner

    if args.embedding_cache and isinstance(refiner, PhoenixRefiner):
        refiner.cache_embeddings(args.embedding_cache, max_gigabytes=args.embedding_cache_gb)


def add_device_argument(parser: _ActionsContainer) -> None:
    """What networks run on."""
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")


def add_attack_arguments(parser: _ActionsContainer, *, prefix: str = "", **weights: Any) -> None:
    """Whose decoder is attacked, and how; see `load_attack`.

    Args:
        parser: gets the arguments.
        prefix: of their names, for tools that have weights of another kind too.
        weights: options of the argument of the weights.
    """
    parser.add_argument(
        f"--{prefix}weights", metavar="FILE", help="of the refiner whose decoder is attacked, or their name", **weights
    )
    parser.add_argument(
        f"--{prefix}config", default="phoenix_tiny.yaml", metavar="FILE",
        help="its MODEL.PHOENIX.PERTURBATION says how to attack (default: phoenix_tiny.yaml)",
    )  # fmt: skip


def load_attack(weights: str, config: str, device: str | None) -> Attack:
    """The attack that the arguments name.

    Raises:
        OSError: weights or config cannot be opened.
        ValueError: one of them is none, or there is no such device.
    """
    from phoenix_d2.config import load_config
    from phoenix_d2.modeling.build import build_noise_sampler
    from phoenix_d2.offline.perturb import Attack
    from phoenix_d2.predictor import PhoenixRefiner

    cfg = load_config(config)
    refiner = PhoenixRefiner.from_pretrained(weights, device=device)
    return Attack(refiner, build_noise_sampler(cfg), cfg.MODEL.PHOENIX.PERTURBATION.DENSE_PROMPT)


def add_run_arguments(parser: ArgumentParser) -> None:
    """Device, processes and resuming; see `run_options`."""
    group = parser.add_argument_group("run")
    group.add_argument("--resume", action="store_true", help="go on with what earlier runs had finished")
    add_device_argument(group)
    group.add_argument(
        "--num-workers", type=positive_int, default=1, metavar="N",
        help="processes, one a GPU, or sharing the CPU (default: 1)",
    )  # fmt: skip


def add_shard_argument(parser: ArgumentParser) -> None:
    """Which part of the work is done, see `shard`."""
    parser.add_argument(
        "--shard", type=shard, default=(1, 1), metavar="K/N",
        help="refine the K-th of N parts, on one of several machines, and write no output yet",
    )  # fmt: skip


def add_job_arguments(parser: ArgumentParser) -> None:
    """Which records of a mask file are refined; the options of `phoenix_d2.offline.job.plan_job`."""
    parser.add_argument(
        "--max-images", type=positive_int, metavar="N",
        help="refine and write the valid records of N of their images, drawn at random, to see first what comes of it",
    )  # fmt: skip
    parser.add_argument(
        "--skip-invalid",
        action="store_true",
        help="leave records whose mask, image or category is wrong, and those whose image is missing or of another "
        "size, as they are, and name the first few; without it, they are errors, as ids that are not unique are anyway",
    )


def run_options(args: Namespace, *, update_boxes: bool = False) -> RunOptions:
    """The options that `add_run_arguments` asked for."""
    from phoenix_d2.offline.run import RunOptions

    return RunOptions(num_workers=args.num_workers, device=args.device, update_boxes=update_boxes, resume=args.resume)


def load_refiner(args: Namespace, device: str) -> PhoenixRefiner | CropRefiner:
    """The refiner that `add_refiner_arguments` asked for. `partial(load_refiner, args)` can be pickled.

    Raises:
        OSError: weights or config cannot be opened.
        ValueError: the arguments do not go together, or what they name is unknown or damaged.
    """
    from phoenix_d2.baselines import CLASSICAL, build_refiner, check_name

    cfg = _read_config(args)
    name = args.refiner or ("phoenix" if cfg is None else cfg.MODEL.REFINER.NAME)
    check_name(name)
    if name in CLASSICAL:
        flags = {
            "--weights": args.weights,
            "--num-iters": args.num_iters,
            "--gate": args.gate,
            "--embedding-cache": args.embedding_cache,
        }
        given = [flag for flag, value in flags.items() if value]
        if given:
            raise ValueError(f"The refiner {name!r} has no network: omit {' and '.join(given)}.")
        parameters = {} if cfg is None else cfg.MODEL.REFINER[name.upper()]
        return build_refiner(name, **{key.lower(): value for key, value in parameters.items()})
    given_options = {"num_iters": args.num_iters, "gate": args.gate}
    options = {key: value for key, value in given_options.items() if value is not None}
    if cfg is None:
        refiner = build_refiner(name, weights=args.weights, device=device, **options)
    else:
        refiner = _configured_refiner(args, cfg, name, device, **options)
    use_embedding_cache(args, refiner)
    return refiner


def _read_config(args: Namespace) -> Any:
    """The config with the overrides of the command line, or None."""
    if args.config is None:
        if args.opts:
            raise ValueError(
                f"Config overrides ({' '.join(args.opts)}) need --config; with --config phoenix_tiny.yaml, all else "
                "stays as it is with the weights of the package."
            )
        return None
    # the only glue here, for whoever asks for a config
    from phoenix_d2.config import load_config, override_config

    cfg = load_config(args.config)
    override_config(cfg, args.opts)
    return cfg


def _configured_refiner(args: Namespace, cfg: Any, name: str, device: str, **options: Any) -> PhoenixRefiner:
    """A refiner with a network, of the weights of the command line before those of the config."""
    from dataclasses import replace

    from phoenix_d2.baselines import LEARNED, choose_weights
    from phoenix_d2.modeling.build import refine_options
    from phoenix_d2.predictor import PhoenixRefiner, find_device
    from phoenix_d2.sam.pretrained import find_weights

    cfg.MODEL.DEVICE = str(find_device(device))
    if args.weights or not cfg.MODEL.REFINER.WEIGHTS:
        cfg.MODEL.REFINER.WEIGHTS = str(find_weights(choose_weights(name, args.weights)))
    refiner = LEARNED[name](PhoenixRefiner.from_config(cfg))
    # the config goes before what the refiner's name stands for
    refiner.refiner.options = replace(refine_options(cfg, refiner.options), **options)
    return refiner


@contextmanager
def errors_in_words(*others: type[Exception], interrupted: str = "interrupted") -> Iterator[None]:
    """End the program with a line in place of a traceback, where it is the user who can help it.

    Args:
        others: what users can help besides `OSError` and `ValueError`.
        interrupted: what to say where the user stopped it.
    """
    kinds: tuple[type[Exception], ...] = (OSError, ValueError, *others)
    try:
        yield
    except kinds as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(interrupted)


def check_output(output: Path, inputs: Iterable[Path | None]) -> None:
    """Refuse to replace what is read, or a folder.

    Args:
        output: the argument --output.
        inputs: files that the tool reads; None for one that was not given.

    Raises:
        ValueError: the output is one of them, or a folder.
    """
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder: name a file.")
    if output.resolve() in [path.resolve() for path in inputs if path]:
        raise ValueError(f"--output {output} is also read: write to another file.")


def check_new_folder(output: Path) -> None:
    """Refuse to write into a folder that holds anything.

    Args:
        output: the argument --output.

    Raises:
        ValueError: it is such a folder, or a file.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"--output {output} exists: name a new folder, or remove it.")


def seed(text: str) -> int:
    """A whole number of at least 0, as NumPy's generators take it.

    Raises:
        ArgumentTypeError: it is below 0.
        ValueError: it is no whole number.
    """
    return _whole_number(text, least=0)


def positive_int(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        ArgumentTypeError: it is below 1.
        ValueError: it is no whole number.
    """
    return _whole_number(text, least=1)


def _whole_number(text: str, *, least: int) -> int:
    value = int(text)
    if value < least:
        raise ArgumentTypeError(f"expected at least {least}, got {text}")
    return value


def strength(text: str) -> float:
    """A strength of degradation, from 0 to 1, as a number or a fraction such as 1/3.

    Raises:
        ArgumentTypeError: it is neither, or out of range.
    """
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise ArgumentTypeError(f"expected a number or a fraction, got {text!r}") from error
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"expected a strength from 0 to 1, got {text}")
    return value


def shard(text: str) -> tuple[int, int]:
    """A part of a whole, "K/N" for the K-th of N, counted from 1.

    Raises:
        ArgumentTypeError: it is not of that form, or there is no such part.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ArgumentTypeError(f"expected K/N with K from 1 to N, such as 3/8, got {text!r}")
    return int(index), int(count)
