"""Morphological mask noise: rough contours, blobs, and local dilation, erosion, opening and closing.

The noise that refiners were trained on before (CascadePSP, SegRefiner), and the other arm of the paper's Tables 4d and
8e. Lengths are relative to the object's size, the square root of its area, so that one setting fits any resolution.
"""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.ops.windows import box_window
from phoenix_d2.structures import PerturbationOutcome, PerturbationResult

BoolMask: TypeAlias = NDArray[np.bool_]
_Pixels: TypeAlias = NDArray[np.uint8]

# edits tried on a mask
_MAX_ROUNDS = 100
_ROUGH_MIN_VERTICES = 10
# discs, diamonds and squares as structuring elements
_METRICS = (cv2.DIST_L2, cv2.DIST_L1, cv2.DIST_C)


def perturb_mask(
    mask: BoolMask,
    *,
    iou_threshold: float,
    rng: np.random.Generator,
    iou_margin: float = 0.05,
) -> BoolMask:
    """Add morphological noise until the IoU with the mask lies in [threshold, threshold + margin).

    An edit that would fall below the threshold is dropped and the next ones are smaller, so the IoU never ends below.
    It may end above, when the rounds are spent or the mask is of too few pixels for a step that small.

    Args:
        mask: (h, w) bool.
        iou_threshold: in (0, 1]; the IoU is measured against `mask` itself.
        rng: draws every choice.
        iou_margin: width of the band.

    Returns:
        (h, w) bool, a new array; empty only if `mask` is.

    Raises:
        ValueError: the threshold is outside (0, 1].
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(
            f"iou_threshold is {iou_threshold}; it must be above 0 (an empty mask has IoU 0) and at most 1."
        )
    noisy: BoolMask = mask.copy()
    area = int(np.count_nonzero(mask))
    if area == 0:
        return noisy
    size = area**0.5
    window = box_window(mask, margin=int(size / 2) + 2)
    canvas = _Canvas(mask[window].astype(np.uint8), iou_threshold)
    contours = find_contours(canvas.original)
    boundary = np.concatenate(contours)[:, 0]

    everywhere = (slice(None), slice(None))
    canvas.replace(everywhere, fill_contours([_roughen(c, rng) for c in contours], canvas.original.shape))
    # leaning to one side, as a model does that segments too much or too little, rather than undoing itself; but an
    # object that fills its window has no room to grow
    grow_prob = rng.uniform() * min(1.0, 2 - 2 * area / canvas.original.size)
    scale = 1.0
    for _ in range(_MAX_ROUNDS):
        gap = canvas.iou - iou_threshold
        if gap < iou_margin:
            break
        centre = boundary[rng.integers(len(boundary))]
        radius = scale * size * rng.uniform(0.02, 0.05 + 0.5 * gap)
        region = _region(centre, size * rng.uniform(0.1, 0.6, size=2), canvas.original.shape)
        patch = _edit(canvas.current[region], radius, grow_prob, rng)
        if not canvas.replace(region, patch):
            scale *= 0.7
    noisy[window] = canvas.current.astype(bool)
    return noisy


def perturb_masks(target_masks: Tensor, *, iou_thresholds: Tensor, generator: torch.Generator) -> PerturbationResult:
    """Morphological noise for a batch of masks; the work is done on the CPU, mask by mask.

    Args:
        target_masks: (N, s, s) bool.
        iou_thresholds: (N,) float in (0, 1].
        generator: seeds the noise, one seed a mask.

    Returns:
        Noisy masks on the device of the targets, all of outcome `MORPHOLOGICAL`.
    """
    seeds = torch.randint(2**62, (len(target_masks),), generator=generator, device=generator.device)
    noisy = torch.empty(target_masks.shape, dtype=torch.bool)
    for i, (mask, threshold, seed) in enumerate(
        zip(target_masks.cpu().numpy(), iou_thresholds.tolist(), seeds.tolist(), strict=True)
    ):
        noisy[i] = torch.from_numpy(perturb_mask(mask, iou_threshold=threshold, rng=np.random.default_rng(seed)))
    noisy = noisy.to(target_masks.device)
    outcome = torch.full((len(noisy),), PerturbationOutcome.MORPHOLOGICAL, dtype=torch.long, device=noisy.device)
    return PerturbationResult(noisy, mask_iou(noisy, target_masks), torch.zeros_like(outcome), outcome)


def find_contours(mask: _Pixels) -> list[NDArray[np.int32]]:
    """Every pixel of the contours of objects and of their holes: (n, 1, 2) int32 each, (x, y)."""
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [np.asarray(contour, dtype=np.int32) for contour in contours]


def fill_contours(contours: list[NDArray[np.int32]], shape: tuple[int, ...]) -> _Pixels:
    """The mask of (h, w) uint8 that has these contours; one inside another is a hole."""
    filled = np.zeros(shape, np.uint8)
    # even-odd over all contours at once is what keeps the holes
    cv2.fillPoly(filled, contours, 1)
    return filled


class _Canvas:
    """A mask under edit, and its IoU with the original, kept up to date from the edited region alone."""

    def __init__(self, original: _Pixels, iou_threshold: float) -> None:
        self.original = original
        self.current = original.copy()
        self.iou = 1.0
        self._threshold = iou_threshold
        self._original_area = self._area = self._intersection = cv2.countNonZero(original)

    def replace(self, region: tuple[slice, slice], patch: _Pixels) -> bool:
        """Paint the region, unless the IoU would fall below the threshold; says whether it did."""
        original, current = self.original[region], self.current[region]
        area = self._area + cv2.countNonZero(patch) - cv2.countNonZero(current)
        intersection = self._intersection + cv2.countNonZero(patch & original) - cv2.countNonZero(current & original)
        iou = intersection / (self._original_area + area - intersection)
        if iou < self._threshold:
            return False
        self.current[region] = patch
        self.iou, self._area, self._intersection = iou, area, intersection
        return True


def _region(centre: NDArray[np.int32], half_sides: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The rectangle around a pixel (x, y), clipped to the image; it holds that pixel at least."""
    (x, y), (half_width, half_height) = centre.tolist(), half_sides.astype(int).tolist()
    rows = slice(max(y - half_height, 0), min(y + half_height + 1, shape[0]))
    return rows, slice(max(x - half_width, 0), min(x + half_width + 1, shape[1]))


def _roughen(contour: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
    """Leave out one run of vertices and most of the others, so that straight cuts replace the fine line."""
    n = len(contour)
    if n < _ROUGH_MIN_VERTICES:
        return contour
    run = int(n * rng.uniform(0, 0.15))
    rest = np.roll(contour, int(rng.integers(n)), axis=0)[run:]
    kept = rng.uniform(size=len(rest)) < rng.uniform(0.1, 0.4)
    # three vertices stay whatever is drawn: with fewer there is no polygon
    kept[:: max(len(rest) // 3, 1)] = True
    return rest[kept]


def _edit(patch: _Pixels, radius: float, grow_prob: float, rng: np.random.Generator) -> _Pixels:
    """One random edit of a patch: dilate or erode (likeliest), open, close, or a blob at its centre."""
    growing = bool(rng.uniform() < grow_prob)
    kind = rng.uniform()
    if kind < 0.2:
        return _blob(patch, 2 * radius, int(growing), rng)
    radius = max(radius, 1.0)
    metric = _METRICS[rng.integers(len(_METRICS))]
    first, second = (_dilate, _erode) if growing else (_erode, _dilate)
    edited = first(patch, radius, metric)
    return edited if kind < 0.7 else second(edited, radius, metric)


def _blob(patch: _Pixels, radius: float, value: int, rng: np.random.Generator) -> _Pixels:
    """Paint an ellipse in the middle of the patch."""
    height, width = patch.shape
    axes = (radius * rng.uniform(0.5, 1.0, size=2)).astype(int)
    painted: _Pixels = patch.copy()
    angle = float(rng.uniform(0, 180))
    cv2.ellipse(painted, (width // 2, height // 2), axes.tolist(), angle, 0, 360, value, cv2.FILLED)
    return painted


# distances instead of kernels: the cost does not grow with the radius
def _dilate(patch: _Pixels, radius: float, metric: int) -> _Pixels:
    distance = cv2.distanceTransform(1 - patch, metric, 3)
    return np.less_equal(distance, radius).view(np.uint8)


def _erode(patch: _Pixels, radius: float, metric: int) -> _Pixels:
    distance = cv2.distanceTransform(patch, metric, 3)
    return np.greater(distance, radius).view(np.uint8)
