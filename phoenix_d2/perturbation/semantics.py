"""How the errors of masks follow the image: the semantic correlation of the paper's B.5.

The paper names the ingredients: Canny edges, the Laplacian of Gaussian, Pearson's correlation. What it leaves open is
chosen here: each map is smoothed, so that an error beside an edge counts as one on it; the errors are the pixels in
which mask and target differ; and both are compared in a window around mask and target, not in the whole image, most of
which is neither wrong nor near.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from phoenix_d2.ops.windows import box_window

FEATURES = ("canny", "log", "both")
"""Edges, texture, and the mean of the two: the order of the maps of `semantic_features`."""

# standard deviation in pixels, of the smoothing and of the Laplacian alike
_SIGMA = 2.0
# gradients of 8-bit grey, from the weakest to the strongest edge that is in doubt: OpenCV's tutorial's
_CANNY_THRESHOLDS = (100, 200)
# around the box of mask and target, in units of its sides
_MARGIN = 0.5


def semantic_features(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Strength of edges and texture at each pixel.

    Args:
        image: (H, W, 3) RGB.

    Returns:
        (3, H, W) in the order of `FEATURES`, each in [0, 1].
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    edges = cv2.Canny(grey, *_CANNY_THRESHOLDS).astype(np.float32)
    texture = np.abs(cv2.Laplacian(_smooth(grey.astype(np.float32)), cv2.CV_32F))
    canny, log = (_to_unit_range(_smooth(strength)) for strength in (edges, texture))
    return np.stack([canny, log, (canny + log) / 2])


def semantic_correlation(
    features: NDArray[np.float32], target_mask: NDArray[np.bool_], mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Correlation between where a mask is wrong and where the image has features (Eq. 5).

    Args:
        features: (F, H, W), from `semantic_features`.
        target_mask: (H, W).
        mask: (H, W).

    Returns:
        (F,) in [-1, 1]; NaN where nothing is wrong or the window has no feature.
    """
    errors = target_mask != mask
    if not errors.any():
        return np.full(len(features), np.nan)
    rows, columns = box_window(target_mask | mask, share=_MARGIN)
    return pearson(_smooth(errors[rows, columns].astype(np.float32))[None], features[:, rows, columns])


def pearson(maps: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Pearson's correlation over the last two axes, the others broadcast; NaN where a map is constant."""
    a, b = (m - m.mean(axis=(-2, -1), keepdims=True) for m in (maps.astype(np.float64), others.astype(np.float64)))
    covariance, variance, other = ((m * n).sum(axis=(-2, -1)) for m, n in ((a, b), (a, a), (b, b)))
    # a constant map's deviations from its mean are 0, or roundings of it
    varies = (variance > 1e-12) & (other > 1e-12)
    return np.asarray(np.where(varies, covariance / np.sqrt(np.where(varies, variance * other, 1.0)), np.nan))


def _smooth(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(values, (0, 0), _SIGMA), np.float32)


def _to_unit_range(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values / max(float(values.max()), 1e-6)
