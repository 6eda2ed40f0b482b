"""Mask AP, boundary AP and paired IoU."""

from __future__ import annotations

import copy
import math

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from phoenix_d2.data.mask_json import encode_mask
from phoenix_d2.evaluation.instance_masks import (
    COCO_METRICS,
    LVIS_METRICS,
    evaluate_masks,
    paired_iou,
    saturated_share,
)


def drawn(seed=0, num_images=6, num_categories=3):
    """Blobs, crowds among them, and results that are the blobs moved, dropped, doubled; with equal scores."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image_id in (12, 5, 40, 7, 3, 21)[:num_images]:
        for _ in range(rng.integers(1, 7)):
            blob = cv2.GaussianBlur(rng.random((96, 128)), (0, 0), rng.uniform(3, 12))
            mask = blob > np.quantile(blob, rng.uniform(0.6, 0.995))
            record = {"image_id": image_id, "category_id": int(rng.integers(1, num_categories + 1))}
            annotations.append(
                {
                    **record,
                    "id": len(annotations),
                    "segmentation": encode_mask(mask),
                    "area": float(mask.sum()),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
            for _ in range(rng.integers(0, 3)):
                moved = np.roll(mask, rng.integers(-3, 4, size=2), axis=(0, 1))
                score = float(rng.integers(1, 6)) / 5
                results.append({**record, "segmentation": encode_mask(moved), "score": score, "bbox": [0, 0, 9, 9]})
    images = [{"id": i, "height": 96, "width": 128} for i in (12, 5, 40, 7, 3, 21)]
    categories = [{"id": c, "name": str(c)} for c in range(1, num_categories + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def by_pycocotools(annotations, results):
    """Mask AP of the reference; ids from 1, since pycocotools too takes 0 for "not matched"."""
    annotations, results = copy.deepcopy((annotations, results))
    for annotation in annotations["annotations"]:
        annotation["id"] += 1
    for result in results:
        result.pop("bbox")
    truth = COCO()
    truth.dataset = annotations
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(COCO_METRICS, evaluation.stats[:6] * 100, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_mask_ap_equals_pycocotools(seed):
    annotations, results = drawn(seed)
    expected = {k: math.nan if v < 0 else v for k, v in by_pycocotools(annotations, results).items()}
    assert evaluate_masks(annotations, results)["segm"] == pytest.approx(expected, abs=1e-10, nan_ok=True)


def test_arguments_are_not_changed():
    annotations, results = drawn()
    before = copy.deepcopy((annotations, results))
    evaluate_masks(annotations, results)
    paired_iou(annotations, results)
    saturated_share(annotations)
    assert (annotations, results) == before


@pytest.mark.parametrize(("shift", "mask_ap", "boundary_ap"), [(0, 100, 100), (1, 100, 50), (2, 90, 10), (3, 80, 0)])
def test_ap_of_shifted_squares(dataset, prediction, square, shift, mask_ap, boundary_ap):
    """The share of the thresholds 0.50, 0.55 ... 0.95 that the overlap reaches.

    For a square of 40 pixels shifted by s, mask IoU is (40 - s) / (40 + s): 1, 0.951, 0.905, 0.860. With
    a band of 3 pixels Boundary IoU is (444 - 74 s) / (444 + 74 s): 1, 0.714, 0.5, 0.333.
    """
    scores = evaluate_masks(dataset([(1, 1, square(10))]), [prediction(1, 1, square(10 + shift))])
    assert scores["segm"]["AP"] == pytest.approx(mask_ap)
    assert scores["boundary"]["AP"] == pytest.approx(boundary_ap)
    assert scores["boundary"]["AP50"] == pytest.approx(100 if shift < 3 else 0)
    assert scores["boundary"]["AP75"] == pytest.approx(100 if shift < 1 else 0)
    # 1,600 pixels lie between 32 * 32 and 96 * 96
    assert scores["boundary"]["APm"] == scores["boundary"]["AP"]
    assert math.isnan(scores["boundary"]["APs"]) and math.isnan(scores["boundary"]["APl"])


def test_boundary_ap_follows_the_dilation_ratio(dataset, prediction, square):
    # at 5 % the band is 7 pixels wide: (924 - 66) / (924 + 66) = 0.867, eight thresholds
    annotations, results = dataset([(1, 1, square(10))]), [prediction(1, 1, square(11))]
    assert evaluate_masks(annotations, results, dilation_ratio=0.05)["boundary"]["AP"] == pytest.approx(80)


@pytest.mark.parametrize("style", ["coco", "lvis"])
def test_perfect_results_score_100(dataset, prediction, square, style):
    triples = [(1, 1, square(10)), (1, 2, square(50)), (2, 3, square(30, side=10))]
    annotations = dataset(triples, num_categories=3)
    scores = evaluate_masks(annotations, [prediction(*triple) for triple in triples], style=style)
    assert list(scores) == ["segm", "boundary"]
    for figures in scores.values():
        assert tuple(figures) == (LVIS_METRICS if style == "lvis" else COCO_METRICS)
        assert {k: v for k, v in figures.items() if k != "APl"} == pytest.approx(
            {k: 100.0 for k in figures if k != "APl"}
        )
        assert math.isnan(figures["APl"])


def test_no_results_score_0_and_no_ground_truth_scores_nan(dataset, prediction, square):
    annotations = dataset([(1, 1, square(10))])
    assert evaluate_masks(annotations, [])["boundary"]["AP"] == 0
    assert math.isnan(evaluate_masks(dataset([]), [prediction(1, 1, square(10))])["segm"]["AP"])
    empty = prediction(1, 1, np.zeros((100, 100), dtype=bool))
    assert evaluate_masks(annotations, [empty])["boundary"]["AP"] == 0


def test_class_agnostic_counts_all_categories_as_one(dataset, prediction, square):
    annotations = dataset([(1, 1, square(10)), (2, 2, square(50))])
    swapped = [prediction(1, 2, square(10)), prediction(2, 1, square(50))]
    assert evaluate_masks(annotations, swapped)["segm"]["AP"] == 0
    assert evaluate_masks(annotations, swapped, class_agnostic=True)["segm"]["AP"] == pytest.approx(100)
    unknown = [prediction(1, 77, square(10)), prediction(2, 78, square(50))]
    assert evaluate_masks(annotations, unknown, class_agnostic=True)["boundary"]["AP"] == pytest.approx(100)


def test_max_dets_in_coco_is_for_an_image_and_category(dataset, prediction, square):
    annotations = dataset([(1, 1, square(10)), (1, 2, square(50))])
    results = [
        prediction(1, 1, square(60, 60, 5), score=0.9),
        prediction(1, 1, square(10), score=0.8),
        prediction(1, 2, square(50), score=0.1),
    ]
    assert evaluate_masks(annotations, results, max_dets=1)["segm"]["AP"] == pytest.approx(50)
    assert evaluate_masks(annotations, results, max_dets=2)["segm"]["AP"] == pytest.approx(75)


def test_max_dets_in_lvis_is_for_an_image(dataset, prediction, square):
    annotations = dataset([(1, 1, square(10)), (1, 2, square(50))])
    results = [prediction(1, 2, square(50), score=0.1), prediction(1, 1, square(10), score=0.8)]
    scores = evaluate_masks(annotations, results, style="lvis", max_dets=1)["segm"]
    assert (scores["APr"], scores["APc"]) == pytest.approx((100, 0))
    assert math.isnan(scores["APf"])


def test_lvis_counts_only_verified_categories(dataset, prediction, square):
    annotations = dataset([(1, 1, square(10))])
    good = prediction(1, 1, square(10), score=0.5)
    # image 2 has no annotation, and nobody checked it for category 1
    elsewhere = prediction(2, 1, square(10), score=0.9)
    assert evaluate_masks(annotations, [good, elsewhere], style="lvis")["boundary"]["AP"] == pytest.approx(100)
    annotations["images"][1]["neg_category_ids"] = [1]
    assert evaluate_masks(annotations, [good, elsewhere], style="lvis")["boundary"]["AP"] == pytest.approx(50)
    annotations["images"][1]["not_exhaustive_category_ids"] = [1]
    assert evaluate_masks(annotations, [good, elsewhere], style="lvis")["boundary"]["AP"] == pytest.approx(100)


def test_lvis_style_needs_lvis_annotations(dataset, square):
    annotations = dataset([(1, 1, square(10))])
    with pytest.raises(ValueError, match=r"category by category.*style 'coco'"):
        evaluate_masks(annotations, [], style="lvis", class_agnostic=True)
    annotations["categories"] = [{"id": 1, "name": "thing"}]
    with pytest.raises(ValueError, match=r"'frequency'.*style 'coco'"):
        evaluate_masks(annotations, [], style="lvis")


def test_image_ids_may_be_strings(dataset, prediction, square):
    annotations = dataset([(1, 1, square(10))])
    for record in (*annotations["images"], *annotations["annotations"]):
        key = "image_id" if "image_id" in record else "id"
        record[key] = f"image {record[key]}"
    results = [prediction("image 1", 1, square(10))]
    assert evaluate_masks(annotations, results)["segm"]["AP"] == pytest.approx(100)


def test_image_ids_may_be_of_both_kinds(dataset, prediction, square):
    data = dataset([(1, 1, square(10))])
    data["images"][1]["id"] = "two"
    assert evaluate_masks(data, [prediction(1, 1, square(10))])["segm"]["AP"] == pytest.approx(100)


def test_category_ids_are_numbers_unless_all_count_as_one(dataset, prediction, square):
    data, results = dataset([(1, "car", square(10))]), [prediction(1, "car", square(10))]
    data["categories"][0]["id"] = "car"
    with pytest.raises(ValueError, match="Category ids must be numbers, found 'car'"):
        evaluate_masks(data, results)
    assert evaluate_masks(data, results, class_agnostic=True)["segm"]["AP"] == pytest.approx(100)


def test_boxes_and_areas_are_optional(dataset, prediction, square):
    annotations = dataset([(1, 1, square(10))])
    del annotations["annotations"][0]["area"], annotations["annotations"][0]["bbox"]
    assert evaluate_masks(annotations, [prediction(1, 1, square(10))])["segm"]["APm"] == pytest.approx(100)


def test_box_ap_on_request(dataset, prediction, square):
    annotations = dataset([(1, 1, square(10))])
    results = [prediction(1, 1, square(60), bbox=[10, 10, 40, 40])]
    scores = evaluate_masks(annotations, results, iou_types=["bbox", "segm"])
    assert (scores["bbox"]["AP"], scores["segm"]["AP"]) == pytest.approx((100, 0))


def test_paired_iou_of_shifted_squares(dataset, prediction, square):
    annotations = dataset([(1, 1, square(10)), (2, 1, square(10))])
    results = [
        prediction(1, 1, square(11), gt_id=1),
        prediction(2, 1, square(12), gt_id=2),
        prediction(2, 1, square(50)),
    ]
    pairs = paired_iou(annotations, results)
    assert pairs.num_pairs == 2
    assert pairs.iou == pytest.approx(100 * (39 / 41 + 38 / 42) / 2)
    assert pairs.boundary_iou == pytest.approx(100 * (370 / 518 + 296 / 592) / 2)


def test_paired_iou_of_empty_masks(dataset, prediction, square):
    empty = np.zeros((100, 100), dtype=bool)
    annotations = dataset([(1, 1, square(10))])
    pairs = paired_iou(annotations, [prediction(1, 1, empty, gt_id=1)])
    assert (pairs.iou, pairs.boundary_iou) == (0, 0)
    assert paired_iou(annotations, [prediction(1, 1, square(10))]) is None
    assert paired_iou(annotations, iter([])) is None


def test_saturated_share(dataset, square):
    # the band is 3 pixels wide: a side of 6 is all band, one of 7 is not
    annotations = dataset([(1, 1, square(10, side=side)) for side in (1, 6, 7, 40)])
    assert saturated_share(annotations) == pytest.approx(50)
    assert saturated_share(annotations, dilation_ratio=0.01) == pytest.approx(25)
    annotations["annotations"][0]["iscrowd"] = 1
    assert saturated_share(annotations) == pytest.approx(100 / 3)
    assert math.isnan(saturated_share(dataset([])))
