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
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from phoenix_d2.evidence import EVIDENCE, MaskSource
from phoenix_d2.options import RefineOptions

# evidence further from its mean, in standard deviations, counts as this far: a parabola is not to be trusted there
_MAX_DEVIATION = 3.0

PRIOR_MASKS = 5.0
"""Masks of a source after which a gate goes by them as much as by each mask alone."""


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
class QuadraticForm:
    """`bias + z @ linear + z @ quadratic @ z`, for z of K numbers.

    Attributes:
        bias: of z = 0.
        linear: (K,) coefficients.
        quadratic: (K, K) coefficients, upper triangular.

    Raises:
        ValueError: a number is not finite, or the lengths differ.
    """

    bias: float
    linear: tuple[float, ...]
    quadratic: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if {len(self.quadratic), *map(len, self.quadratic)} - {len(self.linear)}:
            raise ValueError(f"{len(self.linear)} linear coefficients want as many rows and columns of others: {self}.")
        _check_finite(self.bias, *self.linear, *sum(self.quadratic, ()))

    def __call__(self, z: Tensor) -> Tensor:
        """(N, K) -> (N,)."""
        linear, quadratic = z.new_tensor(self.linear), z.new_tensor(self.quadratic)
        return self.bias + z @ linear + ((z @ quadratic) * z).sum(1)

    @classmethod
    def fit(cls, z: Tensor, targets: Tensor, *, ridge: float) -> QuadraticForm:
        """Ridge regression in closed form.

        Args:
            z: (N, K) double.
            targets: (N,) double.
            ridge: penalty on the squared coefficients, all but the bias, as a share of N.
        """
        size = z.shape[1]
        rows, cols = torch.triu_indices(size, size)
        terms = torch.cat([torch.ones_like(z[:, :1]), z, z[:, rows] * z[:, cols]], dim=1)
        penalty = torch.full((terms.shape[1],), ridge * len(terms), dtype=terms.dtype)
        penalty[0] = 0
        coefficients = torch.linalg.solve(terms.T @ terms + penalty.diag(), terms.T @ targets)
        bias, linear, products = coefficients.split([1, size, len(rows)])
        quadratic = torch.zeros(size, size, dtype=terms.dtype)
        quadratic[rows, cols] = products
        return cls(bias.item(), _plain(linear), tuple(map(_plain, quadratic)))


@dataclass(frozen=True)
class RefinementGate:
    """Predicts what a refined mask gains, and accepts it if that is enough.

    Two predictions are mixed: one by the mask's own evidence, and one by this and the mean evidence of its source. The
    second counts n / (n + `prior_masks`) where n masks of the source are known. Both are forms in evidence less `mean`,
    over `std`; what is missing (NaN) counts as average. What is enough shrinks as the source becomes known: it is
    `min_gain`, and `margin` times the share of the first prediction.

    Attributes:
        evidence: names in `EVIDENCE` of the E kinds used.
        mean, std: (E,) of each kind over the masks of the calibration.
        alone: of E numbers, a mask's evidence.
        known: of 2 E numbers, a mask's evidence and the mean of its source.
        min_gain: least predicted gain of a mask that is accepted.
        margin: what it must gain beyond that where nothing is known of its source.
        prior_masks: as many masks of a source must be known for it to count as much as the mask alone.

    Raises:
        ValueError: names, numbers or lengths are not as described.
    """

    evidence: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    alone: QuadraticForm
    known: QuadraticForm
    min_gain: float = 0.0
    margin: float = 0.0
    prior_masks: float = PRIOR_MASKS

    def __post_init__(self) -> None:
        unknown = [name for name in self.evidence if name not in EVIDENCE]
        if unknown:
            raise ValueError(f"Unknown evidence {unknown}: this version measures {', '.join(EVIDENCE)}.")
        kinds = len(self.evidence)
        lengths = {len(self.mean), len(self.std), len(self.alone.linear), len(self.known.linear) / 2}
        if lengths != {kinds}:
            raise ValueError(
                f"A gate of {kinds} kinds of evidence has as many means and coefficients, and twice as many where the "
                f"source is known: {self}."
            )
        _check_finite(*self.mean, *self.std, self.min_gain, self.margin, self.prior_masks)
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
        values = _with_tuples(metadata)
        try:
            return cls(**values | {name: QuadraticForm(**_with_tuples(values[name])) for name in ("alone", "known")})
        except (AttributeError, TypeError) as error:
            raise ValueError(f"Not the coefficients of a gate ({error}): {metadata!r:.200}.") from error

    def to_metadata(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def predict_gain(self, evidence: Tensor, source: MaskSource) -> Tensor:
        """(N, F) evidence, columns as in `EVIDENCE`, on masks of a source -> (N,) float32 predicted gain in quality."""
        # in double precision, so that decisions hardly depend on the device, and on the host, as some devices have none
        own = self.standardise(evidence.cpu().double())
        others = self.standardise(own.new_tensor([source.mean_evidence])).expand_as(own)
        share = self.familiarity(source)
        return ((1 - share) * self.alone(own) + share * self.known(torch.cat([own, others], dim=1))).to(evidence)

    def accepts(self, predicted_gain: Tensor, source: MaskSource) -> Tensor:
        """(N,) predicted gain of masks of a source -> (N,) bool."""
        return predicted_gain >= self.min_gain + self.margin * (1 - self.familiarity(source))

    def standardise(self, evidence: Tensor) -> Tensor:
        """(N, F) evidence, or means of it -> (N, E), what the predictions are forms of."""
        columns = evidence[:, _places(self.evidence)]
        return _deviations(columns, columns.new_tensor(self.mean), columns.new_tensor(self.std))

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


def fit_gate(sources: Sequence[tuple[Tensor, Tensor]], *, ridge: float = 0.03) -> RefinementGate:
    """Fit a gate by ridge regression, the prediction for known sources with each known by all its masks.

    Evidence that is the same for all masks, or known of none, is left out.

    Args:
        sources: of each the (n, F) float evidence on its masks, columns as in `EVIDENCE`, and their (n,) float gains,
            quality of each refined mask less that of the coarse one.
        ridge: see `QuadraticForm.fit`.

    Raises:
        ValueError: there are no masks, or no evidence that varies.
    """
    evidence = torch.cat([torch.zeros(0, len(EVIDENCE)), *(masks for masks, _ in sources)]).double().cpu()
    names = tuple(name for name in EVIDENCE if _varies(evidence[:, EVIDENCE.index(name)]))
    if not names:
        raise ValueError(f"The evidence on {len(evidence)} masks does not vary: calibrate on more masks.")
    columns = evidence[:, _places(names)]
    mean = columns.nanmean(0)
    std = (columns - mean).square().nanmean(0).sqrt()
    own = _deviations(columns, mean, std)
    means = torch.tensor([MaskSource.of(masks).mean_evidence for masks, _ in sources], dtype=torch.double)
    counts = torch.tensor([len(masks) for masks, _ in sources])
    others = _deviations(means[:, _places(names)], mean, std).repeat_interleave(counts, dim=0)
    gains = torch.cat([gains for _, gains in sources]).double().cpu()
    return RefinementGate(
        names,
        _plain(mean),
        _plain(std),
        alone=QuadraticForm.fit(own, gains, ridge=ridge),
        known=QuadraticForm.fit(torch.cat([own, others], dim=1), gains, ridge=ridge),
    )


def _deviations(columns: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return ((columns - mean) / std).nan_to_num(nan=0.0).clamp(-_MAX_DEVIATION, _MAX_DEVIATION)


def _places(names: Sequence[str]) -> list[int]:
    return [EVIDENCE.index(name) for name in names]


def _varies(column: Tensor) -> bool:
    known = column[~column.isnan()]
    return known.numel() > 1 and bool(known.std() > 1e-6)


def _check_finite(*numbers: float) -> None:
    if not all(isinstance(number, float | int) and math.isfinite(number) for number in numbers):
        raise ValueError(f"The numbers of a gate must be finite, got {numbers}.")


def _plain(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())


def _with_tuples(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _as_tuple(value) for name, value in plain.items()}


def _as_tuple(value: Any) -> Any:
    """Lists, which JSON makes of tuples, as tuples again."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
