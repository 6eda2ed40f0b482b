"""The options of refining: what cannot work, and how many masks are decoded together."""

from __future__ import annotations

import math
from typing import Any

import pytest

from phoenix_d2.options import RefineOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_iters": 0}, "num_iters 0"),
        ({"num_iters": 2.5}, "num_iters 2.5 and chunk_size None are whole"),
        ({"num_iters": "abc"}, "num_iters abc"),
        ({"chunk_size": 0}, "chunk_size 0"),
        ({"zoom_context": 1.0}, "zoom_context must be above 1"),
        ({"zoom_context": math.inf}, "zoom_context must be above 1"),
        ({"zoom_below": math.nan}, "zoom_below is a share"),
        ({"window_scale": -1.0}, "window_scale must be 0, which is off, or"),
        ({"window_scale": 0.001}, "at least 0.1, got 0.001"),
        ({"stop_overlap": 0.0}, "stop_overlap is an IoU"),
        ({"color_weight": -0.5}, "color_weight must be at least 0"),
        ({"candidate": "worst"}, "Unknown candidate 'worst': expected one of best, mean"),
        ({"gate": "on"}, "Unknown gate 'on': expected one of auto"),
        ({"gate_min_iou": 50.0}, "must be from 0 to 1"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RefineOptions(**options)


@pytest.mark.parametrize(("options", "sizes"), [(RefineOptions(), [2, 32]), (RefineOptions(chunk_size=5), [5, 5])])
def test_how_many_masks_are_decoded_together(options: RefineOptions, sizes: list[int]) -> None:
    assert [options.masks_at_once(device) for device in ("cpu", "cuda")] == sizes
