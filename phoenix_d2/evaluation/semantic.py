"""Mean IoU and mean Boundary IoU of semantic label maps. All figures are percentages."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phoenix_d2.ops.boundary import boundary_band


class LabelMapEvaluator:
    """Compares label maps with the right ones, over all pixels of a data set together.

    As in Detectron2's `SemSegEvaluator`, pixels that are void in the ground truth count nowhere, IoU is pooled over the
    data set, and its mean is over the classes that occur in the ground truth. Any other label, void too, is a mistake
    where the ground truth has a class.

    Boundary IoU is that of each class' mask within its bands (see `phoenix_d2.ops.boundary`), pooled likewise; on void
    pixels of the ground truth there is neither mask nor outline to compare.

    Args:
        void: label of pixels without ground truth.
        dilation_ratio: boundary band width as a share of the image diagonal.
    """

    def __init__(self, void: int = 255, *, dilation_ratio: float = 0.02) -> None:
        self.void = void
        self.dilation_ratio = dilation_ratio
        self._counts: dict[int, NDArray[np.int64]] = {}
        self._right = self._total = 0

    def add(self, labels: NDArray[Any], truth: NDArray[Any]) -> None:
        """Take in the label map of an image and the right one, both (H, W) integer.

        Raises:
            ValueError: they differ in size.
        """
        if labels.shape != truth.shape:
            raise ValueError(
                f"Label maps of one image have one size, got {labels.shape} and {truth.shape} (height, width): resize "
                "one to the other (nearest neighbour)."
            )
        judged = truth != self.void
        labels = np.where(judged, labels, self.void)
        self._right += np.count_nonzero((labels == truth) & judged)
        self._total += np.count_nonzero(judged)
        for label in np.union1d(labels, truth).tolist():
            if label != self.void:
                counts = self._counts.setdefault(label, np.zeros(5, np.int64))
                counts += self._count(labels == label, truth == label)

    def scores(self) -> dict[str, float]:
        """Means over classes of IoU and Boundary IoU, and pixel accuracy; NaN where nothing was taken in."""
        ious, boundary_ious = self._ious()
        return {
            "mIoU": _mean(ious.values()),
            "mBIoU": _mean(boundary_ious.values()),
            "pAcc": 100 * self._right / self._total if self._total else float("nan"),
        }

    def class_ious(self) -> dict[int, float]:
        """IoU by label, of the classes that occur in the ground truth."""
        return self._ious()[0]

    def _ious(self) -> tuple[dict[int, float], dict[int, float]]:
        ious, boundary_ious = {}, {}
        for label, (common, union, band_common, band_union, truth) in sorted(self._counts.items()):
            if truth:
                ious[label] = float(100 * common / union)
                boundary_ious[label] = float(100 * band_common / band_union)
        return ious, boundary_ious

    def _count(self, mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Pixels of intersection, union, the bands' intersection and union, and the truth."""
        band, true_band = (boundary_band(each, dilation_ratio=self.dilation_ratio) for each in (mask, truth))
        areas = (mask & truth, mask | truth, band & true_band, band | true_band, truth)
        return np.array([np.count_nonzero(area) for area in areas])


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
