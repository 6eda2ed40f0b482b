"""Visual cues: points and boxes that a user gives for masks (paper A.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phoenix_d2.ops.frames import Frame
from phoenix_d2.structures import PointLabel


@dataclass(frozen=True)
class UserCues:
    """What a user gave for the N masks of an image, in the image frame; None where nothing was given.

    Attributes:
        points: (N, K, 2) float, continuous (x, y) image coordinates.
        point_labels: (N, K), values of `PointLabel` up to foreground; not None where points are given.
        boxes: (N, 4) float, XYXY in image pixels, exclusive maxima.
    """

    points: Tensor | None = None
    point_labels: Tensor | None = None
    boxes: Tensor | None = None

    @classmethod
    def checked(
        cls, points: Tensor | None, point_labels: Tensor | None, boxes: Tensor | None, *, num_masks: int
    ) -> UserCues:
        """Cues for `num_masks` masks; points without labels lie on the object.

        Raises:
            ValueError: shapes do not fit the masks or one another, a label is unknown, a coordinate not finite, or a
                box empty.
        """
        n = num_masks
        if points is not None and (points.ndim != 3 or points.shape[0] != n or points.shape[2] != 2):
            raise ValueError(f"Expected points of shape ({n}, K, 2), K points a mask, got {tuple(points.shape)}.")
        if point_labels is not None and (points is None or point_labels.shape != points.shape[:2]):
            given = None if points is None else tuple(points.shape[:2])
            raise ValueError(f"Expected one label a point, {given}, got {tuple(point_labels.shape)}.")
        if point_labels is not None:
            _check_labels(point_labels)
        if boxes is not None:
            if boxes.shape != (n, 4):
                raise ValueError(f"Expected boxes of shape ({n}, 4), got {tuple(boxes.shape)}.")
            _check_boxes(boxes)
        if points is not None:
            if point_labels is None:
                point_labels = torch.full(points.shape[:2], int(PointLabel.FOREGROUND))
            _check_finite(points[point_labels != PointLabel.PADDING], "Points")
        return cls(
            None if points is None else points.to(torch.float32),
            point_labels,
            None if boxes is None else boxes.to(torch.float32),
        )

    def to(self, device: torch.device) -> UserCues:
        """The same cues on a device."""
        cues = (self.points, self.point_labels, self.boxes)
        return UserCues(*(None if cue is None else cue.to(device) for cue in cues))

    def __getitem__(self, rows: Tensor) -> UserCues:
        """The cues of some masks."""
        cues = (self.points, self.point_labels, self.boxes)
        return UserCues(*(None if cue is None else cue[rows] for cue in cues))

    def in_frames(self, rows: Tensor, frames: Sequence[Frame]) -> UserCues:
        """The cues of some masks in model-input coordinates, each mask's in its own frame."""

        def to_input(coords: Tensor) -> Tensor:
            return torch.stack([frame.coords_to_input(c) for c, frame in zip(coords[rows], frames, strict=True)])

        return UserCues(
            None if self.points is None else to_input(self.points),
            None if self.point_labels is None else self.point_labels[rows],
            None if self.boxes is None else to_input(self.boxes.view(-1, 2, 2)).flatten(1),
        )

    def around(self, boxes: Tensor) -> Tensor:
        """(N, 4) boxes of whole pixels that hold the masks' (N, 4) `boxes` and what the user gave for each."""
        corners = [boxes.view(-1, 2, 2).float()]
        if self.boxes is not None:
            corners.append(self.boxes.view(-1, 2, 2))
        if self.points is not None and self.point_labels is not None:
            is_point = (self.point_labels != PointLabel.PADDING)[..., None]
            corners.append(torch.where(is_point, self.points, corners[0][:, :1]))
        extent = torch.cat(corners, dim=1)
        return torch.cat([extent.amin(1).floor(), extent.amax(1).ceil()], dim=1)


def _check_labels(labels: Tensor) -> None:
    if ((labels < PointLabel.PADDING) | (labels > PointLabel.FOREGROUND)).any():
        raise ValueError(
            f"Point labels { {*labels.flatten().tolist()} } hold others than 1 (on the object), 0 (off it) and "
            "-1 (no point); give boxes as boxes."
        )


def _check_finite(coords: Tensor, what: str) -> None:
    wrong = coords[~coords.isfinite().all(dim=1)]
    if len(wrong):
        raise ValueError(f"{what} {wrong.tolist()} are not finite: give coordinates in pixels of the image.")


def _check_boxes(boxes: Tensor) -> None:
    _check_finite(boxes, "Boxes")
    empty = ~(boxes[:, :2] < boxes[:, 2:]).all(dim=1)
    if empty.any():
        raise ValueError(f"Boxes {boxes[empty].tolist()} are empty: give (x0, y0, x1, y1) with x0 < x1 and y0 < y1.")
