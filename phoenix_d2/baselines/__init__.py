"""Refiners by name, to compare Phoenix with: one interface, same input, same output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from phoenix_d2.baselines.base import CropRefiner, Refiner
from phoenix_d2.baselines.grabcut import GrabCut
from phoenix_d2.baselines.morphology import Morphology
from phoenix_d2.baselines.samrefiner import training_free
from phoenix_d2.predictor import PhoenixRefiner

CLASSICAL: dict[str, type[CropRefiner]] = {"grabcut": GrabCut, "morphology": Morphology}
"""Refiners without weights, built from parameters alone."""

LEARNED: dict[str, Callable[[PhoenixRefiner], PhoenixRefiner]] = {
    "phoenix": lambda refiner: refiner,
    "samrefiner": training_free,
}
"""Refiners with weights: what makes one of a refiner as it was loaded."""

# what ships is trained as Phoenix: it cannot stand for the decoder before that
_DEFAULT_WEIGHTS = {"phoenix": "phoenix_tiny"}

__all__ = ["CLASSICAL", "LEARNED", "CropRefiner", "Refiner", "build_refiner", "check_name", "choose_weights"]


def build_refiner(
    name: str, *, weights: str | Path | None = None, device: str | None = None, **options: Any
) -> PhoenixRefiner | CropRefiner:
    """Build a refiner.

    Args:
        name: key of `LEARNED` or `CLASSICAL`.
        weights: of a learned refiner, see `PhoenixRefiner.from_pretrained`; "phoenix" has some by default.
        device: of a learned refiner, see `PhoenixRefiner.from_pretrained`.
        options: fields of `RefineOptions`, or of the classical refiner, to change.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: there is no refiner of that name, it lacks or does not take weights, or an option is unknown or out
            of range.
    """
    check_name(name)
    if name in LEARNED:
        refiner = LEARNED[name](PhoenixRefiner.from_pretrained(choose_weights(name, weights), device=device))
        _check_options(name, options, refiner.options)
        refiner.refiner.options = replace(refiner.options, **options)
        return refiner
    if weights is not None:
        raise ValueError(f"The refiner {name!r} takes no weights, got {weights}: leave them out.")
    _check_options(name, options, CLASSICAL[name])
    return CLASSICAL[name](**options)


def check_name(name: str) -> None:
    """Check a refiner's name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in LEARNED | CLASSICAL:
        raise ValueError(f"Unknown refiner {name!r}: expected one of {', '.join(LEARNED | CLASSICAL)}.")


def choose_weights(name: str, weights: str | Path | None) -> str | Path:
    """The weights of a learned refiner, or those of the package where none are named.

    Raises:
        ValueError: none are named, and none of the package's will do.
    """
    chosen = weights or _DEFAULT_WEIGHTS.get(name)
    if chosen is None:
        raise ValueError(f"The refiner {name!r} has no weights of its own: name those of a pre-trained decoder.")
    return chosen


def _check_options(name: str, options: dict[str, Any], of: Any) -> None:
    known = [field.name for field in fields(of)]
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise ValueError(f"The refiner {name!r} has no option {', '.join(unknown)}: it has {', '.join(known)}.")
