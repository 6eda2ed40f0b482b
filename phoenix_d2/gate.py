"""Keep or reject: whether a refined mask is better than the coarse one that it came from.

Refinement can make a good mask worse. How the two masks differ, and what the decoder says of both, is the evidence;
a regression on it, calibrated on labelled masks, predicts what the refined mask gains. A single mask says little. Many
of one detector or annotator say much of how good its masks are, so that the mean evidence of a mask's source counts
beside its own. Not in the paper; ours.

Shape letters as in `structures`; F kinds of evidence, E of them used by a gate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.options import RefineOptions

EVIDENCE = (
    "refined_iou",
    "coarse_iou",
    "overlap",
    "agreement",
    "expected_refined_iou",
    "expected_coarse_iou",
    "change_certainty",
    "unanimity",
    "log_area",
    "log_edge_ratio",
)
"""Kinds of evidence on a pair of masks, in the order of columns:

- refined_iou, coarse_iou: the decoder's estimates of the IoU of both masks; NaN where it makes none of the coarse one.
- overlap: IoU of the two masks.
- agreement: IoU of the refined mask with that of the pass before; NaN after a single pass.
- expected_refined_iou, expected_coarse_iou: IoU of both masks with the probabilities that the logits stand for.
- change_certainty: mean of |2 p - 1| over the pixels in which the masks differ, 1 where they do not.
- unanimity: what all the decoder's candidates share over what any of them covers.
- log_area: of the refined mask, in low-resolution pixels.
- log_edge_ratio: strength of the image's edges under the refined mask's outline to that under the coarse one's.
"""

# evidence further from its mean, in standard deviations, counts as this far: a parabola is not to be trusted there
_MAX_DEVIATION = 3.0
# about the edge strength of camera noise
_EDGE_FLOOR = 0.05

PRIOR_MASKS = 10.0
"""Masks of a source after which a gate goes by them as much as by what it assumes of any source."""

ENOUGH_MASKS = 200
"""Masks of a source beyond which a gate hardly becomes more familiar with it (0.95, at `PRIOR_MASKS`)."""


def edge_strength(images: Tensor, valid: Tensor) -> Tensor:
    """How strong the strongest edge within a pixel of each pixel is.

    Args:
        images: (N, 3, s, s) float, RGB of unit variance or so, padded with 0.
        valid: (N, s, s) bool, pixels that are no padding.

    Returns:
        (N, s, s) float, length of the gradient of the channels' mean; 0 where padding begins, which is no edge.
    """
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    x = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    y = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    # outlines may lie a pixel beside their edge
    edges = F.max_pool2d(torch.hypot(x, y), 3, stride=1, padding=1)[:, 0]
    return edges * (F.max_pool2d((~valid).float(), 5, stride=1, padding=2) == 0)


def measure_evidence(
    coarse_masks: Tensor,
    logits: Tensor,
    edges: Tensor,
    *,
    valid: Tensor,
    iou_predictions: Tensor,
    coarse_iou_predictions: Tensor,
    change_trace: Tensor,
    unanimity: Tensor,
) -> Tensor:
    """The evidence on N masks, from what their passes left in the low-resolution frame.

    Args:
        coarse_masks: (N, s, s) bool.
        logits: (N, s, s) float of the last pass.
        edges: (N, s, s) or (1, s, s) float, see `edge_strength`.
        valid: (N, s, s) or (1, s, s) bool, pixels that are no padding.
        iou_predictions: (N,) float, of the refined masks.
        coarse_iou_predictions: (N,) float, NaN where unknown.
        change_trace: (N, T) float, IoU of each pass' mask with the one before.
        unanimity: (N,) float, see `EVIDENCE`.

    Returns:
        (N, F) float32, columns as in `EVIDENCE`; finite but for NaN where there is none of a kind.
    """
    refined_masks = (logits > 0) & valid
    probabilities = logits.float().sigmoid() * valid
    changed = refined_masks ^ coarse_masks
    certainty = ((2 * probabilities - 1).abs() * changed).flatten(1).sum(1)
    num_changed = changed.flatten(1).sum(1)
    agreement = change_trace[:, -1] if change_trace.shape[1] > 1 else torch.full_like(iou_predictions, torch.nan)
    columns = {
        "refined_iou": iou_predictions,
        "coarse_iou": coarse_iou_predictions,
        "overlap": mask_iou(refined_masks, coarse_masks),
        "agreement": agreement,
        "expected_refined_iou": _soft_iou(probabilities, refined_masks),
        "expected_coarse_iou": _soft_iou(probabilities, coarse_masks),
        "change_certainty": torch.where(num_changed > 0, certainty / num_changed.clamp(min=1), 1.0),
        "unanimity": unanimity,
        "log_area": refined_masks.flatten(1).sum(1).clamp(min=1).log(),
        "log_edge_ratio": _edges_under(refined_masks, edges).log() - _edges_under(coarse_masks, edges).log(),
    }
    return torch.stack([columns[name].float() for name in EVIDENCE], dim=1)


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
class MaskSource:
    """Where masks come from, a detector or an annotator, as far as some of its masks have shown.

        source = MaskSource()
        for image, masks in data:
            result = refiner.refine(image, masks, source=source)
            source += MaskSource.of(result.evidence)

    Attributes:
        num_masks: that are known.
        mean_evidence: (F,) of these, columns as in `EVIDENCE`; NaN where there is none of a kind.
    """

    num_masks: int = 0
    mean_evidence: tuple[float, ...] = (math.nan,) * len(EVIDENCE)

    @classmethod
    def of(cls, evidence: Tensor | NDArray[np.floating[Any]]) -> MaskSource:
        """The source of N masks by their (N, F) evidence; rows without any, of masks not refined, do not count."""
        evidence = torch.as_tensor(evidence)
        known = evidence[~evidence.isnan().all(1)].double()
        return cls(len(known), _plain(known.nanmean(0))) if len(known) else cls()

    def __add__(self, other: MaskSource) -> MaskSource:
        """The source that the masks of both come from."""
        pairs = zip(self.mean_evidence, other.mean_evidence, strict=True)
        num_masks = self.num_masks + other.num_masks
        return MaskSource(num_masks, tuple(_mean_of_known((a, self.num_masks), (b, other.num_masks)) for a, b in pairs))


class SourceMemory:
    """Comes to know a source from the masks that are refined one image after the other.

    Once `ENOUGH_MASKS` are known it stays as it is, so that all images after that are decided alike.

    Attributes:
        source: what is known so far.
    """

    def __init__(self, source: MaskSource | None = None) -> None:
        self.source = source or MaskSource()

    @property
    def is_full(self) -> bool:
        """Whether enough masks are known."""
        return self.source.num_masks >= ENOUGH_MASKS

    def add(self, evidence: Tensor | NDArray[np.floating[Any]]) -> None:
        """Remember the masks of (N, F) evidence."""
        if not self.is_full:
            self.source += MaskSource.of(evidence)


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


def _mean_of_known(*parts: tuple[float, int]) -> float:
    """Mean of (mean, number of masks) that are known; NaN of none."""
    known = [(mean, number) for mean, number in parts if not math.isnan(mean)]
    return sum(mean * number for mean, number in known) / sum(number for _, number in known) if known else math.nan


def _varies(column: Tensor) -> bool:
    known = column[~column.isnan()]
    return known.numel() > 1 and bool(known.std() > 1e-6)


def _plain(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())


def _as_tuple(value: Any) -> Any:
    """Lists, which JSON makes of tuples, as tuples again."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _soft_iou(probabilities: Tensor, masks: Tensor) -> Tensor:
    """(N, s, s) probabilities and bool masks -> (N,) IoU by shares of pixels; 1 where both are empty."""
    intersection = (probabilities * masks).flatten(1).sum(1)
    union = probabilities.flatten(1).sum(1) + masks.flatten(1).sum(1) - intersection
    return torch.where(union > 0, intersection / union.clamp(min=1e-6), 1.0)


def _edges_under(masks: Tensor, edges: Tensor) -> Tensor:
    """(N,) mean edge strength under the outlines of masks, with a floor so that flat images favour neither of two."""
    padded = F.pad(masks, (1, 1, 1, 1))
    inner = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    outlines = masks & ~inner
    return (outlines * edges).flatten(1).sum(1) / outlines.flatten(1).sum(1).clamp(min=1) + _EDGE_FLOOR
