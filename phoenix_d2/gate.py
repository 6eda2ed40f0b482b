"""Keep or reject: whether a refined mask is better than the coarse one that it came from.

Refinement can make a good mask worse. How the two masks differ, and what the decoder says of both, is the evidence;
a regression on it, calibrated on labelled masks, predicts what the refined mask gains. A single mask says little. Many
of one detector or annotator say much of how good its masks are, so that the mean evidence of a mask's source counts
beside its own. Not in the paper; ours.

Shape letters as in `structures` and `evidence`; E kinds of evidence used by a gate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from phoenix_d2.evidence import EVIDENCE, MaskSource
from phoenix_d2.options import RefineOptions

# evidence further from its mean, in standard deviations, counts as this far: a parabola is not to be trusted there
_MAX_DEVIATION = 3.0

PRIOR_MASKS = 10.0
"""Masks of a source after which a gate goes by them as much as by what it assumes of any source."""


def within_thresholds(evidence: Tensor, *, min_iou: float, min_overlap: float) -> Tensor:
    """Which refined masks two fixed thresholds let pass, without any calibration.

    Args:
        evidence: (N, F), see `EVIDENCE`.
        min_iou: least predicted IoU of a refined mask; it must also exceed that of the coarse one, where known.
        min_overlap: least IoU of a refined mask with the coarse one.

    Returns:
        (N,) bool.
    """
    refined_iou, coarse_iou, overlap = (
        evidence[:, EVIDENCE.index(name)] for name in ("refined_iou", "coarse_iou", "overlap")
    )
    # a comparison with NaN is false
    return (refined_iou >= min_iou) & (overlap >= min_overlap) & ~(refined_iou < coarse_iou)


@dataclass(frozen=True)
class RefinementGate:
    """Predicts what a refined mask gains, and accepts it from a margin on.

    The prediction is `bias + z @ linear + z @ quadratic @ z`. The first half of z is a mask's evidence, less `mean`,
    over `std`; the second half the same of the mean evidence of its source, times n / (n + `prior_masks`) where n
    masks of it are known. Evidence that is missing (NaN) counts as average. The margin shrinks as the source becomes
    known: it is `margin` times what is left of 1.

    Attributes:
        evidence: names in `EVIDENCE` of the E kinds used.
        mean, std: (E,) of each kind over the masks of the calibration.
        bias: gain predicted of average evidence.
        linear: (2 E,) coefficients.
        quadratic: (2 E, 2 E) coefficients, upper triangular.
        margin: least predicted gain of a mask that is accepted, where nothing is known of its source.
        prior_masks: as many masks of a source must be known for them to count as much as not knowing it.

    Raises:
        ValueError: names, numbers or lengths are not as described.
    """

    evidence: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bias: float
    linear: tuple[float, ...]
    quadratic: tuple[tuple[float, ...], ...]
    margin: float = 0.0
    prior_masks: float = PRIOR_MASKS

    def __post_init__(self) -> None:
        unknown = [name for name in self.evidence if name not in EVIDENCE]
        if unknown:
            raise ValueError(f"Unknown evidence {unknown}: this version measures {', '.join(EVIDENCE)}.")
        kinds = len(self.evidence)
        coefficients = {len(values) for values in (self.linear, self.quadratic, *self.quadratic)}
        if {len(self.mean), len(self.std)} != {kinds} or coefficients != {2 * kinds}:
            raise ValueError(
                f"A gate of {kinds} kinds of evidence has as many means, twice as many coefficients: {self}."
            )
        scalars = [self.bias, self.margin, self.prior_masks]
        numbers = [*self.mean, *self.std, *self.linear, *sum(self.quadratic, ()), *scalars]
        if not all(isinstance(number, float | int) and math.isfinite(number) for number in numbers):
            raise ValueError(f"The numbers of a gate must be finite: {self}.")
        if not all(value > 0 for value in (*self.std, self.prior_masks)):
            raise ValueError(f"std {self.std} and prior_masks {self.prior_masks} of a gate must be positive.")

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> RefinementGate:
        """The gate that `to_metadata` described.

        Raises:
            ValueError: a value is missing, left over or not as `RefinementGate` describes it.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(metadata, Mapping) or metadata.keys() != names:
            raise ValueError(
                f"Expected a gate of {', '.join(sorted(names))}, got {metadata!r:.200}. "
                "Calibrate it again (tools/calibrate_gate.py) with this version."
            )
        try:
            return cls(**{name: _as_tuple(value) for name, value in metadata.items()})
        except TypeError as error:
            raise ValueError(
                f"Evidence and coefficients of a gate must be lists ({error}): {metadata!r:.200}."
            ) from error

    def to_metadata(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def predict_gain(self, evidence: Tensor, source: MaskSource) -> Tensor:
        """(N, F) evidence, columns as in `EVIDENCE`, on masks of a source -> (N,) float32 predicted gain in quality."""
        z = self.standardise(evidence, source)
        linear, quadratic = (z.new_tensor(values) for values in (self.linear, self.quadratic))
        return (self.bias + z @ linear + ((z @ quadratic) * z).sum(1)).float()

    def accepts(self, predicted_gain: Tensor, source: MaskSource) -> Tensor:
        """(N,) predicted gain of masks of a source -> (N,) bool."""
        return predicted_gain >= self.margin * (1 - self.familiarity(source))

    def standardise(self, evidence: Tensor, source: MaskSource) -> Tensor:
        """(N, F) evidence on masks of a source -> (N, 2 E) double, what the prediction is a form of."""
        # in double precision, so that decisions hardly depend on the device
        both = [evidence.double(), evidence.new_tensor([source.mean_evidence], dtype=torch.double)]
        mean, std = (both[0].new_tensor(values) for values in (self.mean, self.std))
        own, others = (
            ((columns - mean) / std).nan_to_num(nan=0.0).clamp(-_MAX_DEVIATION, _MAX_DEVIATION)
            for columns in (rows[:, _places(self.evidence)] for rows in both)
        )
        return torch.cat([own, (self.familiarity(source) * others).expand_as(own)], dim=1)

    def familiarity(self, source: MaskSource) -> float:
        """How well a source is known, from 0 towards 1."""
        return source.num_masks / (source.num_masks + self.prior_masks)


def judge(
    evidence: Tensor, source: MaskSource, gate: RefinementGate | None, options: RefineOptions
) -> tuple[Tensor, Tensor]:
    """Which refined masks are accepted, by the gate that the options choose.

    Args:
        evidence: (N, F), see `EVIDENCE`.
        source: of the masks.
        gate: the calibrated one, if there is one.
        options: which gate decides; without one all masks are accepted.

    Returns:
        (N,) bool, and the (N,) float gains predicted, NaN but from a calibrated gate.
    """
    unknown = torch.full_like(evidence[:, 0], torch.nan)
    if options.gate == "fixed":
        thresholds = {"min_iou": options.gate_min_iou, "min_overlap": options.gate_min_overlap}
        return within_thresholds(evidence, **thresholds), unknown
    if gate is None or not options.uses_calibrated_gate:
        return torch.ones_like(unknown, dtype=torch.bool), unknown
    predicted_gain = gate.predict_gain(evidence, source)
    return gate.accepts(predicted_gain, source), predicted_gain


def fit_gate(
    groups: Sequence[tuple[Tensor, Tensor, MaskSource]],
    *,
    ridge: float = 0.01,
    margin: float = 0.0,
    prior_masks: float = PRIOR_MASKS,
) -> RefinementGate:
    """Fit a gate by ridge regression, in closed form.

    Evidence that is the same for all masks, or known of none, is left out.

    Args:
        groups: masks of one source each, as (n, F) float evidence, columns as in `EVIDENCE`, (n,) float gains, quality
            of each refined mask less that of the coarse one, and the source as it is to be known. The same masks may
            come several times, with less and more of their source known.
        ridge: penalty on the squared coefficients, all but the bias, as a share of the number of masks.
        margin: of the gate.
        prior_masks: of the gate.

    Raises:
        ValueError: there are no masks, or no evidence that varies.
    """
    evidence = torch.cat([masks for masks, _, _ in groups]).double().cpu() if groups else torch.zeros(0, len(EVIDENCE))
    names = tuple(name for name in EVIDENCE if _varies(evidence[:, EVIDENCE.index(name)]))
    if not names:
        raise ValueError(f"The evidence on {len(evidence)} masks does not vary: calibrate on more masks.")
    columns = evidence[:, _places(names)]
    mean = columns.nanmean(0)
    std = (columns - mean).square().nanmean(0).sqrt()
    size = 2 * len(names)
    blank = RefinementGate(
        names, _plain(mean), _plain(std), 0.0, (0.0,) * size, ((0.0,) * size,) * size, margin, prior_masks
    )
    z = torch.cat([blank.standardise(masks.double().cpu(), source) for masks, _, source in groups])
    gains = torch.cat([gains for _, gains, _ in groups]).double().cpu()
    rows, cols = torch.triu_indices(size, size)
    terms = torch.cat([torch.ones_like(z[:, :1]), z, z[:, rows] * z[:, cols]], dim=1)
    penalty = torch.full((terms.shape[1],), ridge * len(terms), dtype=terms.dtype)
    penalty[0] = 0
    coefficients = torch.linalg.solve(terms.T @ terms + penalty.diag(), terms.T @ gains)
    bias, linear, products = coefficients.split([1, size, len(rows)])
    quadratic = torch.zeros(size, size, dtype=terms.dtype)
    quadratic[rows, cols] = products
    return replace(blank, bias=bias.item(), linear=_plain(linear), quadratic=tuple(map(_plain, quadratic)))


def _places(names: Sequence[str]) -> list[int]:
    return [EVIDENCE.index(name) for name in names]


def _varies(column: Tensor) -> bool:
    known = column[~column.isnan()]
    return known.numel() > 1 and bool(known.std() > 1e-6)


def _plain(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())


def _as_tuple(value: Any) -> Any:
    """Lists, which JSON makes of tuples, as tuples again."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
