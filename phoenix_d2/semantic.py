"""Semantic label maps: split into parts, refine the parts as masks, merge them into a label map again (paper A.3).

A refined mask knows nothing of its neighbours, so that two of them may claim a pixel and none another. Merging leaves
every pixel exactly one label, by this rule:

- A refined part claims pixels with the decoder's logits, and the highest claim wins, below zero too: what a part gave
  up goes to the neighbour that comes nearest to having it, and stays where it was if none comes nearer.
- A part that was kept, and the background where there is one, claim their pixels with zero: they yield to whatever
  holds a pixel for its own, and get what nobody does. So do specks that are too small to be parts.
- Void pixels stay void, and no others become so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phoenix_d2.evidence import MaskSource
from phoenix_d2.ops.frames import Frame
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.structures import RefinementResult, RefinementStatus

# smaller components of a label that has several are noise (SAMRefiner)
_MIN_AREA = 5


@dataclass(frozen=True)
class LabelParts:
    """What a label map is split into, each to be refined by itself.

    Attributes:
        masks: (P, H, W) bool, disjoint.
        labels: (P,) int64, of each part.
    """

    masks: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        assert self.masks.ndim == 3 and self.masks.dtype == torch.bool
        assert self.labels.shape == self.masks.shape[:1]


@dataclass(frozen=True)
class LabelRefinement:
    """A refined label map.

    Attributes:
        labels: (H, W), of the type of the given ones.
        part_labels: (P,) int64, of the parts that the given ones were split into.
        part_status: (P,) int64, values of `RefinementStatus`, what became of each part.
    """

    labels: Tensor
    part_labels: Tensor
    part_status: Tensor


def refine_labels(
    refiner: MaskRefiner,
    image: Tensor,
    labels: Tensor,
    *,
    background: int | None = None,
    void: int | None = 255,
    source: MaskSource | None = None,
    options: RefineOptions | None = None,
) -> LabelRefinement:
    """Refine the label map of one image; the image is encoded once, but for parts that are zoomed.

    Args:
        refiner: in evaluation mode, on any device.
        image: (3, H, W) RGB in 0 to 255, uint8 or float.
        labels: (H, W) integer, of any values.
        background: a label that is no class and is not refined: it gets what the classes give up, and gives what they
            gain. None where every label is a class.
        void: the label of pixels that are nobody's and stay so; None where there are none.
        source: what other images have shown of the source of these labels.
        options: those of the refiner when None.

    Raises:
        ValueError: image and labels differ in size, or the labels are no integers.
    """
    if labels.ndim != 2 or labels.is_floating_point():
        raise ValueError(f"Expected (H, W) labels of an integer type, got {labels.dtype} {tuple(labels.shape)}.")
    # few operations know unsigned types of more than a byte, and smaller ones may not hold `void`
    given, labels = labels, labels.long()
    parts = split_labels(labels, ignored=[label for label in (background, void) if label is not None])
    result = refiner.refine(image, parts.masks, source=source, options=options, keep_logits=True)
    frames = refiner.plan(parts.masks, options)[1]
    merged = merge_labels(labels, parts, result, frames, background=background, void=void)
    return LabelRefinement(merged.to(given.dtype), parts.labels, result.status.to(labels.device))


def split_labels(labels: Tensor, *, ignored: Collection[int] = (), whole: Collection[int] = ()) -> LabelParts:
    """Split the labels of a map into parts, roughly one an object (SAMRefiner's split).

    The 8-connected components of a label are parts, but that components of under 5 pixels are none where there are
    others, and that two are one part where they fill more than half of the box around both, and it no less than the
    emptier one fills its own (by 0.1).

    Args:
        labels: (H, W) integer.
        ignored: labels that are not split: they have no part.
        whole: labels that are one part each, since each is one object.

    Returns:
        Parts on the device of `labels`, by rising label.
    """
    array = labels.cpu().numpy()
    masks: list[NDArray[np.bool_]] = []
    owners: list[int] = []
    for label in np.unique(array).tolist():
        if label not in ignored:
            mask = array == label
            parts = [mask] if label in whole else list(_components(mask))
            masks += parts
            owners += [label] * len(parts)
    stacked = torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *array.shape, dtype=torch.bool)
    return LabelParts(stacked.to(labels.device), torch.tensor(owners, dtype=torch.int64, device=labels.device))


def merge_labels(
    labels: Tensor,
    parts: LabelParts,
    result: RefinementResult,
    frames: Mapping[int, Frame],
    *,
    background: int | None = None,
    void: int | None = None,
) -> Tensor:
    """Merge refined parts into one label map, by the rule that the module's docstring states.

    Args:
        labels: (H, W) integer, that was split.
        parts: of `labels`.
        result: of the parts' masks, with its logits.
        frames: by part, those that its logits are in (`MaskRefiner.plan`).
        background: see `refine_labels`.
        void: see `refine_labels`.

    Returns:
        (H, W), of the type and on the device of `labels`.
    """
    device = result.low_res_logits.device
    owners = parts.labels.tolist()
    refined = (result.status == RefinementStatus.REFINED).tolist()
    merged = labels.to(device, copy=True)
    # logits, not probabilities, which are all 1 where the decoder is sure
    highest = torch.zeros(labels.shape, device=device)
    given_up = parts.masks[refined].any(0).to(device)
    if background is None:
        highest[given_up] = -torch.inf
    else:
        merged[given_up] = background
    for i, frame in frames.items():
        if refined[i]:
            x0, y0, x1, y1 = frame.window
            window = (slice(y0, y1), slice(x0, x1))
            strengths = frame.logits_to_window(result.low_res_logits[i, None])[0].abs()
            # the sign is the mask's, whose outline may have been refined further
            claims = torch.where(result.masks[i][window], strengths, -strengths)
            merged[window].masked_fill_(claims > highest[window], owners[i])
            highest[window] = torch.maximum(claims, highest[window])
    merged = merged.to(labels.device)
    return merged if void is None else merged.masked_fill(labels == void, void)


def _components(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    """The parts of one label, from its (H, W) mask, which is not empty."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    crop = (slice(y, y + height), slice(x, x + width))
    count, components, stats, _ = cv2.connectedComponentsWithStats(mask[crop].view(np.uint8), connectivity=8)
    stats = stats[1:]
    kept = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] >= _MIN_AREA) if count > 2 else np.arange(1)
    for group in _grouped(stats[kept]):
        part = np.zeros_like(mask)
        part[crop] = np.isin(components, kept[group] + 1)
        yield part


def _grouped(stats: NDArray[Any]) -> list[list[int]]:
    """Which of (n, 5) components, in OpenCV's statistics, are one part: SAMRefiner's greedy single pass.

    Each component in turn takes in the later ones that suit it; its box and area grow at once. The area of a box is
    that of its pixels throughout, where SAMRefiner leaves a row and a column of the common one out.
    """
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.float64)
    low = stats[:, [cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP]].astype(np.float64)
    high = low + stats[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]
    groups = []
    remaining = list(range(len(stats)))
    while remaining:
        first, *remaining = remaining
        group, candidates = [first], np.array(remaining, dtype=np.int64)
        while len(candidates):
            own_box, box = np.prod(high[first] - low[first]), np.prod(high[candidates] - low[candidates], axis=1)
            span = np.maximum(high[first], high[candidates]) - np.minimum(low[first], low[candidates])
            common = np.prod(span, axis=1)
            fill = np.minimum(areas[first] / own_box, areas[candidates] / box)
            suits = own_box + box > 0.5 * common
            suits &= (areas[first] + areas[candidates]) / common > np.minimum(0.5, fill - 0.1)
            if not suits.any():
                break
            place = int(suits.argmax())
            taken = int(candidates[place])
            group.append(taken)
            low[first], high[first] = np.minimum(low[first], low[taken]), np.maximum(high[first], high[taken])
            areas[first] += areas[taken]
            candidates = candidates[place + 1 :]
        remaining = [index for index in remaining if index not in group]
        groups.append(group)
    return groups
