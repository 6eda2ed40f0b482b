"""Detectron2's COCO and LVIS evaluators, with boundary AP beside mask AP."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, LVISEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils.logger import create_small_table

from phoenix_d2.data.mask_json import Record, complete_annotation, image_sizes
from phoenix_d2.evaluation.instance_masks import (
    COCO_METRICS,
    LVIS_METRICS,
    IouType,
    Style,
    evaluate_masks,
    saturated_share,
)
from phoenix_d2.ops.masks import masks_to_boxes

Scores: TypeAlias = dict[str, dict[str, float]]

logger = logging.getLogger(__name__)


class BoundaryCOCOEvaluator(COCOEvaluator):
    """Detectron2's `COCOEvaluator` with boundary AP: {"bbox": ..., "segm": ..., "boundary": ...}.

    Predictions may lack `pred_boxes`; the boxes are then those of the masks, as is what annotations lack.

    Args:
        dataset_name: a registered dataset.
        dilation_ratio: boundary band width as a share of the image diagonal.

    The others are those of `COCOEvaluator`.
    """

    def __init__(self, dataset_name: str, *args: Any, dilation_ratio: float = 0.02, **kwargs: Any) -> None:
        # the category mapping comes with the first reading of a dataset; without it every category is a wrong one
        metadata = MetadataCatalog.get(dataset_name)
        if hasattr(metadata, "json_file") and not hasattr(metadata, "thing_dataset_id_to_contiguous_id"):
            DatasetCatalog.get(dataset_name)
        super().__init__(dataset_name, *args, **kwargs)
        self._dilation_ratio = dilation_ratio
        content = self._coco_api.dataset
        sizes = image_sizes(content)
        for annotation in content.get("annotations", ()):
            complete_annotation(annotation, sizes[annotation["image_id"]])

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Take in one batch; arguments as Detectron2's evaluators."""
        super().process(inputs, [_with_boxes(output) for output in outputs])

    def _tasks_from_predictions(self, predictions: list[Record]) -> list[str]:
        # with no prediction at all, Detectron2 would leave masks out of the report
        return super()._tasks_from_predictions(predictions) if predictions else ["bbox", "segm"]

    def _eval_predictions(self, predictions: list[dict], img_ids: Iterable[int] | None = None) -> None:
        super()._eval_predictions(predictions, img_ids=img_ids)
        if "segm" not in self._results:
            return
        annotations, results = self._coco_api.dataset, _results_of(predictions)
        if img_ids is not None:
            annotations, results = _restricted(annotations, results, set(img_ids))
        scores = _score(
            annotations,
            results,
            style="coco",
            iou_types=["boundary"],
            dilation_ratio=self._dilation_ratio,
            max_dets=self._max_dets_per_image[-1],
        )
        self._results.update(scores)


class BoundaryLVISEvaluator(LVISEvaluator):
    """Detectron2's `LVISEvaluator` with boundary AP: {"bbox": ..., "segm": ..., "boundary": ...}.

    Evaluation is `evaluate_masks`, since that of the `lvis` package does not run with numpy 2.
    Predictions may lack `pred_boxes`; the boxes are then those of the masks.

    Args:
        dataset_name: a registered dataset.
        tasks: of "bbox" and "segm", which brings "boundary" along; those that the predictions have when None.
        dilation_ratio: boundary band width as a share of the image diagonal.

    The others are those of `LVISEvaluator`.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        *args: Any,
        dilation_ratio: float = 0.02,
        **kwargs: Any,
    ) -> None:
        # the base class evaluates its tasks by lvis: it gets none, see _tasks_from_predictions
        super().__init__(dataset_name, None, *args, **kwargs)
        self._requested_tasks = tasks
        self._dilation_ratio = dilation_ratio

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Take in one batch; arguments as Detectron2's evaluators."""
        super().process(inputs, [_with_boxes(output) for output in outputs])

    def _tasks_from_predictions(self, predictions: list[Record]) -> tuple[str, ...]:
        return ()

    def _eval_predictions(self, predictions: list[dict]) -> None:
        # maps category ids to the dataset's, in place, and writes the results file
        super()._eval_predictions(predictions)
        if not self._do_evaluation:
            return
        results = _results_of(predictions)
        scores = _score(
            self._lvis_api.dataset,
            results,
            style="lvis",
            iou_types=self._iou_types(results),
            dilation_ratio=self._dilation_ratio,
            max_dets=self._max_dets_per_image,
        )
        self._results.update(scores)

    def _iou_types(self, results: list[Record]) -> list[Any]:
        inferred = super()._tasks_from_predictions(results) if results else ("bbox", "segm")
        tasks = sorted(self._requested_tasks or inferred)
        return [*tasks, "boundary"] if "segm" in tasks else tasks


def _with_boxes(output: dict) -> dict:
    """The output, with the masks' boxes if its instances have no boxes of their own."""
    instances = output.get("instances")
    if instances is None or instances.has("pred_boxes") or not instances.has("pred_masks"):
        return output
    boxes = Boxes(masks_to_boxes(instances.pred_masks).float())
    return {**output, "instances": Instances(instances.image_size, **instances.get_fields(), pred_boxes=boxes)}


def _results_of(predictions: list[dict]) -> list[Record]:
    return list(itertools.chain.from_iterable(prediction["instances"] for prediction in predictions))


def _restricted(annotations: Record, results: list[Record], image_ids: set[int]) -> tuple[Record, list[Record]]:
    """Annotations and results of some images only."""
    restricted = {
        **annotations,
        "images": [image for image in annotations["images"] if image["id"] in image_ids],
        "annotations": [record for record in annotations["annotations"] if record["image_id"] in image_ids],
    }
    return restricted, [record for record in results if record["image_id"] in image_ids]


def _score(
    annotations: Record,
    results: list[Record],
    *,
    style: Style,
    iou_types: Sequence[IouType],
    dilation_ratio: float,
    max_dets: int | None,
) -> Scores:
    """`evaluate_masks` reported as Detectron2 does: logged, and NaN where there is no prediction at all."""
    if not results:
        logger.warning("No predictions from the model!")
        metrics = LVIS_METRICS if style == "lvis" else COCO_METRICS
        return {iou_type: dict.fromkeys(metrics, math.nan) for iou_type in iou_types}
    scores = evaluate_masks(
        annotations, results, style=style, dilation_ratio=dilation_ratio, max_dets=max_dets, iou_types=iou_types
    )
    for iou_type, figures in scores.items():
        logger.info("Evaluation results for %s:\n%s", iou_type, create_small_table(figures))
    if "boundary" in scores:
        share = saturated_share(annotations, dilation_ratio=dilation_ratio)
        logger.info("The boundary band is the whole mask for %.1f %% of the ground truth.", share)
    return scores
