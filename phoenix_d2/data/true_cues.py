"""Ground-truth prompts: visual cues that the right masks give for coarse ones (paper A.2, Table 5b)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import torch

from phoenix_d2.data.mask_json import PathLike, Record, decode_segmentation, image_sizes
from phoenix_d2.ops.masks import masks_to_boxes
from phoenix_d2.prompting.depths import euclidean_depths
from phoenix_d2.prompting.points import sample_points
from phoenix_d2.structures import PointLabel

Cue: TypeAlias = Literal["point", "box"]


def add_true_cues(
    results: Sequence[Record], annotations: Record, *, kinds: Iterable[Cue], source: PathLike
) -> list[Record]:
    """Write what the annotations say into the results that are predictions of them.

    Args:
        results: records of a results file with `gt_id`, checked.
        annotations: content of the annotation file, checked.
        kinds: "point", the mask's deepest pixel and the background pixel in its box that is farthest from it, if that
            is farther than a pixel; "box", its tight box. Those that a prompter derives, of the right mask.
        source: the results file's name, for messages.

    Returns:
        The records with "point_coords" and "point_labels", "prompt_box" (see `visual_cues`) or both, in the same order.

    Raises:
        ValueError: a record has no `gt_id`, or a wrong one.
    """
    by_id = {annotation["id"]: annotation for annotation in annotations["annotations"]}
    sizes = image_sizes(annotations)
    kinds = tuple(kinds)
    with_cues = []
    for index, record in enumerate(results):
        if record.get("gt_id") not in by_id:
            raise ValueError(
                f"{source}: result {index} (counted from 0): gt_id {record.get('gt_id')} is no annotation's. "
                "Ground-truth prompts need the id of the annotation that the mask is a prediction of."
            )
        annotation = by_id[record["gt_id"]]
        with_cues.append(record | _cues(annotation["segmentation"], sizes[annotation["image_id"]], kinds))
    return with_cues


def _cues(segmentation: Record, size: tuple[int, int], kinds: tuple[Cue, ...]) -> Record:
    mask = torch.from_numpy(decode_segmentation(segmentation, *size).copy(order="C"))[None]
    boxes = masks_to_boxes(mask)
    x0, y0, x1, y1 = boxes[0].tolist()
    if x0 == x1:
        return {}
    coords, labels = (tensor[0].tolist() for tensor in sample_points(euclidean_depths(mask, boxes)))
    points = [(point, label) for point, label in zip(coords, labels, strict=True) if label != PointLabel.PADDING]
    cues: Record = {}
    if "point" in kinds:
        cues |= {"point_coords": [point for point, _ in points], "point_labels": [label for _, label in points]}
    if "box" in kinds:
        cues["prompt_box"] = [x0, y0, x1 - x0, y1 - y0]
    return cues
