"""Gates made by hand."""

from __future__ import annotations

from typing import Any

from phoenix_d2.gate import QuadraticForm, RefinementGate


def linear_form(*linear: float, bias: float = 0.0) -> QuadraticForm:
    """A form without products."""
    return QuadraticForm(bias, linear, ((0.0,) * len(linear),) * len(linear))


def gate_of(bias: float, *, own: float = 0.0, others: float = 0.0, mean: float = 0.5, **values: Any) -> RefinementGate:
    """A gate that goes by a mask's overlap with the coarse one, and its source's, in quarters from a mean."""
    alone, known = linear_form(own, bias=bias), linear_form(own, others, bias=bias)
    return RefinementGate(("overlap",), (mean,), (0.25,), alone, known, **values)
