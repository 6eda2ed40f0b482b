"""Mask AP, boundary AP and paired IoU of instance masks. All figures are percentages.

The AP figures come from faster-coco-eval, which equals the COCO, LVIS and Boundary IoU reference
code; what that library leaves to its caller (LVIS' limit of detections an image, categories merged
into one, ids of any kind) is prepared here, on copies. Its boundary mode erodes every mask over the
whole image; `boundary_ap.py` comes to the same figures with the crops of a few.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pycocotools.mask as mask_util
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from phoenix_d2.data.mask_json import Record, category_ids, image_sizes, segmentation_to_rle
from phoenix_d2.evaluation.boundary_ap import BoundaryEvaluation, cropped_mask
from phoenix_d2.ops.boundary import band_width

Style: TypeAlias = Literal["coco", "lvis"]
IouType: TypeAlias = Literal["bbox", "segm", "boundary"]

COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
LVIS_METRICS = (*COCO_METRICS, "APr", "APc", "APf")
_MAX_DETS = {"coco": 100, "lvis": 300}

# faster-coco-eval's names where they differ
_LIBRARY_NAMES = dict(zip(COCO_METRICS, ("AP_all", "AP_50", "AP_75", "AP_small", "AP_medium", "AP_large"), strict=True))


def evaluate_masks(
    annotations: Record,
    results: Sequence[Record],
    *,
    style: Style = "coco",
    class_agnostic: bool = False,
    dilation_ratio: float = 0.02,
    max_dets: int | None = None,
    iou_types: Sequence[IouType] = ("segm", "boundary"),
) -> dict[str, dict[str, float]]:
    """Average precision of masks against ground truth; neither argument is changed.

    Boundary AP takes the smaller of mask IoU and Boundary IoU as the overlap of two masks (Cheng et
    al. 2021). A result's size class (APs, APm, APl) goes by its mask, never by a box that it carries.

    Args:
        annotations: a COCO or LVIS annotation file's content.
        results: a COCO results file's content.
        style: "lvis" for LVIS' federated protocol and APr, APc, APf.
        class_agnostic: whether all categories count as one ("coco" only: whether a category was
            looked for at all is said category by category in LVIS).
        dilation_ratio: boundary band width as a share of the image diagonal.
        max_dets: results that count, highest score first: an image and category in COCO, an image in
            LVIS; 100 and 300 when None.
        iou_types: which overlaps to evaluate; "bbox" needs "bbox" in both arguments and "area" in
            the annotations.

    Returns:
        {IoU type: {metric: percent}}; NaN where no ground truth falls into a metric.

    Raises:
        ValueError: `style` and the other arguments do not go together, or category ids are no numbers.
    """
    if style == "lvis":
        _check_federated(annotations, class_agnostic)
    if not class_agnostic:
        _check_category_ids(annotations)
    limit = max_dets or _MAX_DETS[style]
    if style == "lvis":
        results = _federated_results(annotations, results, limit)
    metrics = LVIS_METRICS if style == "lvis" else COCO_METRICS

    # mask AP and boundary AP read the same records
    pairs = {key: _library_pair(annotations, results, key, class_agnostic) for key in set(map(_shape_key, iou_types))}
    scores: dict[str, dict[str, float]] = {}
    for iou_type in iou_types:
        pair = pairs[_shape_key(iou_type)]
        if iou_type == "boundary":
            evaluation = BoundaryEvaluation(*pair, dilation_ratio=dilation_ratio, lvis_style=style == "lvis")
        else:
            evaluation = COCOeval_faster(*pair, iou_type, lvis_style=style == "lvis")
        evaluation.params.maxDets = [limit]
        evaluation.run()
        figures = evaluation.stats_as_dict
        scores[iou_type] = {metric: _percent(figures[_LIBRARY_NAMES.get(metric, metric)]) for metric in metrics}
    return scores


@dataclass(frozen=True)
class PairedIoU:
    """Overlap of results with the annotations that they name in `gt_id`.

    Attributes:
        iou: mean mask IoU, percent.
        boundary_iou: mean Boundary IoU, percent.
        num_pairs: how many results name an annotation.
    """

    iou: float
    boundary_iou: float
    num_pairs: int


def paired_iou(annotations: Record, results: Iterable[Record], *, dilation_ratio: float = 0.02) -> PairedIoU | None:
    """Mean IoU and Boundary IoU over the results that carry `gt_id`.

    Args:
        annotations: a COCO or LVIS annotation file's content.
        results: a COCO results file's content; `gt_id` is the id of an annotation of the same image.
        dilation_ratio: boundary band width as a share of the image diagonal.

    Returns:
        The means, or None if no result carries `gt_id`.
    """
    overlaps = paired_overlaps(annotations, results, dilation_ratios=(dilation_ratio,))
    if not len(overlaps):
        return None
    mean_iou, mean_boundary_iou = np.mean(overlaps, axis=0)
    return PairedIoU(_percent(mean_iou), _percent(mean_boundary_iou), len(overlaps))


def paired_overlaps(
    annotations: Record, results: Iterable[Record], *, dilation_ratios: Sequence[float] = (0.02,)
) -> NDArray[np.float64]:
    """IoU and Boundary IoU of every result that carries `gt_id`, in their order, two masks in memory at a time.

    Args:
        annotations: a COCO or LVIS annotation file's content.
        results: a COCO results file's content; `gt_id` is the id of an annotation of the same image.
        dilation_ratios: boundary band widths as shares of the image diagonal.

    Returns:
        (N, 1 + R) in [0, 1]: IoU, then the Boundary IoU of each of R band widths.
    """
    sizes = image_sizes(annotations)
    targets = {annotation["id"]: annotation for annotation in annotations["annotations"]}
    overlaps = []
    for result in results:
        if "gt_id" not in result:
            continue
        size = sizes[result["image_id"]]
        mask, target = (
            cropped_mask(segmentation_to_rle(record["segmentation"], *size))
            for record in (result, targets[result["gt_id"]])
        )
        depths = [band_width(*size, dilation_ratio=ratio) for ratio in dilation_ratios]
        overlaps.append([mask.iou(target), *(mask.band(depth).iou(target.band(depth)) for depth in depths)])
    return np.array(overlaps, dtype=np.float64).reshape(-1, 1 + len(dilation_ratios))


def saturated_share(annotations: Record, *, dilation_ratio: float = 0.02) -> float:
    """Percentage of ground truth so thin that its boundary band is the whole mask.

    There boundary AP says what mask AP says. The short side of the mask's box decides: twice the
    band width or less. Crowd regions do not count; NaN without ground truth.
    """
    sizes = image_sizes(annotations)
    saturated = []
    for annotation in annotations["annotations"]:
        if annotation.get("iscrowd", 0):
            continue
        size = sizes[annotation["image_id"]]
        box = mask_util.toBbox(segmentation_to_rle(annotation["segmentation"], *size))
        saturated.append(min(box[2:]) <= 2 * band_width(*size, dilation_ratio=dilation_ratio))
    return _percent(float(np.mean(saturated))) if saturated else math.nan


def _percent(fraction: float) -> float:
    """Percentage of a share; NaN for the library's -1, "nothing to measure"."""
    return float(fraction) * 100 if fraction >= 0 else math.nan


def _image_indices(annotations: Record) -> dict[object, int]:
    """Integers for image ids, as the library needs them; in the ids' order, which decides among equal scores."""
    # numbers before strings, which do not compare
    ordered = sorted(image_sizes(annotations), key=lambda image_id: (isinstance(image_id, str), image_id))
    return {image_id: index for index, image_id in enumerate(ordered, start=1)}


def _shape_key(iou_type: IouType) -> str:
    """Where a record has the shape that is compared."""
    return "bbox" if iou_type == "bbox" else "segmentation"


def _library_pair(annotations: Record, results: Sequence[Record], key: str, class_agnostic: bool) -> tuple[COCO, COCO]:
    """Ground truth and results for the library: copies with what evaluation reads, which it may write into."""
    indices, sizes = _image_indices(annotations), image_sizes(annotations)

    def record(source: Record, **fields: Any) -> Record:
        category_id = 1 if class_agnostic else source["category_id"]
        # no box beside a mask: the library would take the box's area for the mask's
        shape = list(source[key]) if key == "bbox" else segmentation_to_rle(source[key], *sizes[source["image_id"]])
        return {"image_id": indices[source["image_id"]], "category_id": category_id, key: shape, **fields}

    records = []
    # ids count from 1, since the library takes id 0 for "not matched"
    for index, annotation in enumerate(annotations["annotations"], start=1):
        truth = record(annotation, id=index, iscrowd=annotation.get("iscrowd", 0))
        truth["area"] = annotation["area"] if "area" in annotation else float(mask_util.area(truth["segmentation"]))
        records.append(truth)
    categories = [{"id": 1, "name": "object"}] if class_agnostic else [dict(c) for c in annotations["categories"]]
    images = [{**image, "id": indices[image["id"]]} for image in annotations["images"]]
    ground_truth = COCO({"images": images, "annotations": records, "categories": categories})
    return ground_truth, ground_truth.loadRes([record(result, score=result["score"]) for result in results])


def _check_category_ids(annotations: Record) -> None:
    strings = [category_id for category_id in category_ids(annotations) if isinstance(category_id, str)]
    if strings:
        raise ValueError(
            f"Category ids must be numbers, found {min(strings)!r}. Number the categories, or evaluate "
            "class-agnostically."
        )


def _check_federated(annotations: Record, class_agnostic: bool) -> None:
    if class_agnostic:
        raise ValueError("LVIS style evaluates category by category. Use style 'coco' for class-agnostic AP.")
    if not all("frequency" in category for category in annotations["categories"]):
        raise ValueError(
            "LVIS style needs the 'frequency' (r, c or f) of every category, as LVIS files have it. "
            "Use style 'coco' for other files."
        )


def _federated_results(annotations: Record, results: Sequence[Record], limit: int) -> list[Record]:
    """The results that LVIS counts: the best `limit` of each image, of categories verified to be there or not.

    The library limits results an image and category, and fails on an image of which it drops all results.
    """
    verified = {image["id"]: set(image.get("neg_category_ids", ())) for image in annotations["images"]}
    for annotation in annotations["annotations"]:
        verified[annotation["image_id"]].add(annotation["category_id"])
    by_image: dict[object, list[Record]] = {image_id: [] for image_id in verified}
    for result in results:
        by_image[result["image_id"]].append(result)
    return [
        result
        for image_id, candidates in by_image.items()
        for result in sorted(candidates, key=lambda candidate: candidate["score"], reverse=True)[:limit]
        if result["category_id"] in verified[image_id]
    ]
