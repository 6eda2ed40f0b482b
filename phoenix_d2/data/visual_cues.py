"""Visual cues in mask files: points and boxes that say which object a record's mask is of (paper A.2).

Three keys of a record, annotation or result, all in pixels of its image, pixel centres at half-integers:

- "point_coords": [[x, y], ...];
- "point_labels": 1 for each point on the object and 0 for each off it; all 1 where the key is missing;
- "prompt_box": [x, y, width, height], the convention of COCO's "bbox".

Points replace those derived from the mask, the box that of the mask; what a record lacks stays derived. Refiners that
take no prompts do not read them.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Record: TypeAlias = dict[str, Any]


def check_cues(record: Record, image_size: tuple[int, int] | None) -> None:
    """Check the cues of a record, if it has any.

    Args:
        record: of a mask file.
        image_size: (height, width) of its image in pixels, where known.

    Raises:
        ValueError: a cue is malformed, or lies outside the image; the message says which and what to do.
    """
    points, labels, box = (record.get(key) for key in ("point_coords", "point_labels", "prompt_box"))
    if points is not None:
        _check_points(points, image_size)
    if labels is not None and (
        points is None
        or not _is_list(labels)
        or len(labels) != len(points)
        or any(label not in (0, 1) for label in labels)
    ):
        raise ValueError(
            f"point_labels is {labels!r}: expected 1 (on the object) or 0 (off it) for each point of point_coords, "
            f"which is {points!r}."
        )
    if box is not None:
        _check_box(box, image_size)


def cue_arrays(records: Sequence[Record]) -> dict[str, Any]:
    """The cues of records that have the same kinds of them, as arguments of `PhoenixRefiner.refine`.

    Returns:
        "points" (N, K, 2) and "point_labels" (N, K), padded to the most points, and "boxes" (N, 4) XYXY; each only
        where the records have them.
    """
    # torch stays out of the way of those who only read files
    from phoenix_d2.structures import PointLabel

    arguments: dict[str, NDArray[Any]] = {}
    has_points, has_box = _kinds(records[0])
    if has_points:
        most = max(len(record["point_coords"]) for record in records)
        coords = np.zeros((len(records), most, 2), np.float32)
        labels = np.full((len(records), most), int(PointLabel.PADDING))
        for i, record in enumerate(records):
            count = len(record["point_coords"])
            coords[i, :count] = record["point_coords"]
            labels[i, :count] = record.get("point_labels") or int(PointLabel.FOREGROUND)
        arguments |= {"points": coords, "point_labels": labels}
    if has_box:
        boxes = np.array([record["prompt_box"] for record in records], np.float32)
        boxes[:, 2:] += boxes[:, :2]
        arguments["boxes"] = boxes
    return arguments


def group_by_cues(records: Sequence[Record]) -> list[list[int]]:
    """Indices of records that have the same kinds of cues, those of the first record first."""
    groups = defaultdict(list)
    for index, record in enumerate(records):
        groups[_kinds(record)].append(index)
    return list(groups.values())


def _kinds(record: Record) -> tuple[bool, bool]:
    """Whether a record has points, and whether it has a box; null is none."""
    return record.get("point_coords") is not None, record.get("prompt_box") is not None


def _check_points(points: Any, image_size: tuple[int, int] | None) -> None:
    if not _is_list(points) or not points or not all(_is_list(p) and len(p) == 2 and _are_finite(p) for p in points):
        raise ValueError(f"point_coords is {points!r}: expected [[x, y], ...] in pixels, or no such key.")
    height, width = image_size or (math.inf, math.inf)
    outside = [point for point in points if not (0 <= point[0] <= width and 0 <= point[1] <= height)]
    if outside:
        raise ValueError(
            f"point_coords has {outside[0]}, outside the image of {height} x {width} pixels (height x width): give (x, "
            "y) in pixels of the image."
        )


def _check_box(box: Any, image_size: tuple[int, int] | None) -> None:
    if not _is_list(box) or len(box) != 4 or not _are_finite(box) or min(box[2:]) <= 0:
        raise ValueError(f"prompt_box is {box!r}: expected [x, y, width, height] in pixels, neither side 0.")
    height, width = image_size or (math.inf, math.inf)
    x, y, box_width, box_height = box
    if not (x < width and y < height and x + box_width > 0 and y + box_height > 0):
        raise ValueError(
            f"prompt_box is {box!r}, outside the image of {height} x {width} pixels (height x width): give [x, y, "
            "width, height] in pixels of the image."
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _are_finite(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) and abs(value) <= sys.float_info.max for value in values)
