"""Keep or reject: whether a refined mask is better than the coarse one that it came from.

Refinement can make a good mask worse. How the two masks differ, and what the decoder says of both, is the evidence;
a regression on it, calibrated on labelled masks, predicts what the refined mask gains. Not in the paper; ours.

Shape letters as in `structures`; F kinds of evidence, E of them used by a gate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phoenix_d2.ops.masks import mask_iou

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


def edge_strength(images: Tensor) -> Tensor:
    """How strong the strongest edge within a pixel of each pixel is.

    Args:
        images: (N, 3, s, s) float, RGB of unit variance or so, padded with 0.

    Returns:
        (N, s, s) float, length of the gradient of the channels' mean.
    """
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    x = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    y = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    # outlines may lie a pixel beside their edge
    return F.max_pool2d(torch.hypot(x, y), 3, stride=1, padding=1)[:, 0]


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
    # where the padding begins is no edge of the image
    edges = edges * (F.max_pool2d((~valid).float(), 5, stride=1, padding=2) == 0)
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
class RefinementGate:
    """Predicts what a refined mask gains, and accepts it from a margin on.

    The prediction is `bias + z @ linear + z @ quadratic @ z`, where z is the evidence less `mean` over `std`. Evidence
    that is missing (NaN) counts as average.

    Attributes:
        evidence: names in `EVIDENCE` of the E kinds used.
        mean, std: (E,) of each kind over the masks of the calibration.
        bias: gain predicted of average evidence.
        linear: (E,) coefficients.
        quadratic: (E, E) coefficients, upper triangular.
        margin: least predicted gain of a mask that is accepted.

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

    def __post_init__(self) -> None:
        unknown = [name for name in self.evidence if name not in EVIDENCE]
        if unknown:
            raise ValueError(f"Unknown evidence {unknown}: this version measures {', '.join(EVIDENCE)}.")
        lengths = {len(values) for values in (self.mean, self.std, self.linear, self.quadratic, *self.quadratic)}
        if lengths != {len(self.evidence)}:
            raise ValueError(f"A gate of {len(self.evidence)} kinds of evidence has that many of each number: {self}.")
        numbers = [*self.mean, *self.std, *self.linear, *sum(self.quadratic, ()), self.bias, self.margin]
        if not all(isinstance(number, float | int) and math.isfinite(number) for number in numbers):
            raise ValueError(f"The numbers of a gate must be finite: {self}.")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std {self.std} of a gate must be positive.")

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

    def predict_gain(self, evidence: Tensor) -> Tensor:
        """(N, F) evidence, columns as in `EVIDENCE` -> (N,) float32 predicted gain in quality."""
        z = _standardise(_columns(evidence, self.evidence), self.mean, self.std)
        linear, quadratic = (z.new_tensor(values) for values in (self.linear, self.quadratic))
        return (self.bias + z @ linear + ((z @ quadratic) * z).sum(1)).float()

    def accepts(self, predicted_gain: Tensor) -> Tensor:
        """(N,) predicted gain -> (N,) bool."""
        return predicted_gain >= self.margin


def fit_gate(evidence: Tensor, gains: Tensor, *, ridge: float = 0.01, margin: float = 0.0) -> RefinementGate:
    """Fit a gate by ridge regression, in closed form.

    Evidence that is the same for all masks, or known of none, is left out.

    Args:
        evidence: (N, F) float, columns as in `EVIDENCE`.
        gains: (N,) float, quality of each refined mask less that of the coarse one.
        ridge: penalty on the squared coefficients, all but the bias, as a share of N.
        margin: of the gate.

    Raises:
        ValueError: there are no masks, or no evidence that varies.
    """
    evidence, gains = evidence.double().cpu(), gains.double().cpu()
    names = tuple(name for name in EVIDENCE if _varies(_columns(evidence, (name,))))
    if not names:
        raise ValueError(f"The evidence on {len(evidence)} masks does not vary: calibrate on more masks.")
    columns = _columns(evidence, names)
    mean = columns.nanmean(0)
    std = (columns - mean).square().nanmean(0).sqrt()
    z = _standardise(columns, mean.tolist(), std.tolist())
    rows, cols = torch.triu_indices(len(names), len(names))
    terms = torch.cat([torch.ones_like(z[:, :1]), z, z[:, rows] * z[:, cols]], dim=1)
    penalty = torch.full((terms.shape[1],), ridge * len(terms), dtype=terms.dtype)
    penalty[0] = 0
    coefficients = torch.linalg.solve(terms.T @ terms + penalty.diag(), terms.T @ gains)
    bias, linear, products = coefficients.split([1, len(names), len(rows)])
    quadratic = torch.zeros(len(names), len(names), dtype=terms.dtype)
    quadratic[rows, cols] = products
    return RefinementGate(
        names, _plain(mean), _plain(std), bias.item(), _plain(linear), tuple(map(_plain, quadratic)), margin
    )


def _columns(evidence: Tensor, names: Sequence[str]) -> Tensor:
    # in double precision, so that decisions hardly depend on the device
    return evidence[:, [EVIDENCE.index(name) for name in names]].double()


def _standardise(columns: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    z = (columns - columns.new_tensor(mean)) / columns.new_tensor(std)
    return z.nan_to_num(nan=0.0).clamp(-_MAX_DEVIATION, _MAX_DEVIATION)


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
    union = torch.where(masks, 1.0, probabilities).flatten(1).sum(1)
    return torch.where(union > 0, intersection / union.clamp(min=1e-6), 1.0)


def _edges_under(masks: Tensor, edges: Tensor) -> Tensor:
    """(N,) mean edge strength under the outlines of masks, with a floor so that flat images favour neither of two."""
    padded = F.pad(masks, (1, 1, 1, 1))
    inner = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    outlines = masks & ~inner
    return (outlines * edges).flatten(1).sum(1) / outlines.flatten(1).sum(1).clamp(min=1) + _EDGE_FLOOR
