"""Boundary AP on crops against faster-coco-eval's own boundary mode."""

from __future__ import annotations

import copy

import cv2
import faster_coco_eval.core.mask as library_mask
import numpy as np
import pycocotools.mask as mask_util
import pytest
from faster_coco_eval import COCO, COCOeval_faster

from phoenix_d2.data.mask_json import encode_mask
from phoenix_d2.evaluation.boundary_ap import BoundaryEvaluation, cropped_mask
from phoenix_d2.evaluation.instance_masks import COCO_METRICS, evaluate_masks
from phoenix_d2.ops.boundary import boundary_band

# landscape and portrait; none with a band width of a whole number and a half, which the library rounds its own way
SIZES = ((90, 120), (120, 90), (64, 200))


def blob(rng, height, width):
    """(H, W) bool: parts of any size, with holes, many cut by the image border."""
    noise = cv2.GaussianBlur(rng.random((height, width)), (0, 0), rng.uniform(3, 12))
    return noise > np.quantile(noise, rng.uniform(0.5, 0.995))


def drawn(seed, *, num_images=8, num_categories=3):
    """Blobs, crowds and empty masks, images without results, and results of equal scores, moved or made up."""
    rng = np.random.default_rng(seed)
    images, annotations, results = [], [], []
    for image_id in range(1, num_images + 1):
        height, width = SIZES[image_id % len(SIZES)]
        lists = {"neg_category_ids": [], "not_exhaustive_category_ids": [int(rng.integers(1, num_categories + 1))]}
        images.append({"id": image_id, "height": height, "width": width, **lists})
        for _ in range(rng.integers(1, 9)):
            mask = blob(rng, height, width) & (rng.random() > 0.05)
            record = {"image_id": image_id, "category_id": int(rng.integers(1, num_categories + 1))}
            fields = {"id": len(annotations) + 1, "area": float(mask.sum()), "iscrowd": int(rng.random() < 0.15)}
            annotations.append({**record, **fields, "segmentation": encode_mask(mask)})
            for _ in range(rng.integers(0, 4) * (image_id % 4 > 0)):
                moved = np.roll(mask, rng.choice([-2, 0, 0, 1], size=2), axis=(0, 1))
                found = blob(rng, height, width) if rng.random() < 0.2 else moved
                results.append({**record, "segmentation": encode_mask(found), "score": rng.integers(1, 6) / 5})
    categories = [{"id": c, "name": str(c), "frequency": "rcf"[c % 3]} for c in range(1, num_categories + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def run(make_evaluation, annotations, results, max_dets):
    truth = COCO(copy.deepcopy(annotations))
    evaluation = make_evaluation(truth, truth.loadRes(copy.deepcopy(results)))
    evaluation.params.maxDets = [max_dets]
    evaluation.run()
    return evaluation


@pytest.mark.parametrize("max_dets", [2, 100])
@pytest.mark.parametrize("dilation_ratio", [0.005, 0.02, 0.06])
@pytest.mark.parametrize("lvis_style", [False, True])
def test_precision_and_recall_equal_the_library_s(lvis_style, dilation_ratio, max_dets):
    for seed in range(2):
        annotations, results = drawn(seed)
        ours = run(
            lambda *pair: BoundaryEvaluation(*pair, dilation_ratio=dilation_ratio, lvis_style=lvis_style),
            annotations, results, max_dets,
        )  # fmt: skip
        theirs = run(
            lambda *pair: COCOeval_faster(
                *pair, "boundary", boundary_dilation_ratio=dilation_ratio, lvis_style=lvis_style
            ),
            annotations, results, max_dets,
        )  # fmt: skip
        for array in ("precision", "recall", "scores"):
            np.testing.assert_allclose(ours.eval[array], theirs.eval[array], rtol=0, atol=1e-12)
        assert (ours.eval["precision"] > 0).any()
        assert ours.stats_as_dict == theirs.stats_as_dict


def test_overlaps_that_can_match_equal_the_library_s():
    annotations, results = drawn(5)
    ours = run(BoundaryEvaluation, annotations, results, 100)
    theirs = run(lambda *pair: COCOeval_faster(*pair, "boundary"), annotations, results, 100)
    masks = run(lambda *pair: COCOeval_faster(*pair, "segm"), annotations, results, 100)
    num_lowered = 0
    for pair, overlaps in masks.ious.items():
        if len(overlaps):
            can_match = overlaps >= 0.5
            np.testing.assert_array_equal(ours.ious[pair][can_match], theirs.ious[pair][can_match])
            np.testing.assert_array_equal(ours.ious[pair][~can_match], overlaps[~can_match])
            num_lowered += np.count_nonzero(ours.ious[pair] < overlaps)
    assert num_lowered > 10


def test_scores_of_both_kinds_do_not_depend_on_one_another():
    annotations, results = drawn(1)
    together = evaluate_masks(annotations, results, iou_types=["segm", "boundary"])
    for iou_type in ("segm", "boundary"):
        assert evaluate_masks(annotations, results, iou_types=[iou_type])[iou_type] == together[iou_type]
    reverse = evaluate_masks(annotations, results, iou_types=["boundary", "segm"])
    assert reverse == together and tuple(reverse["segm"]) == COCO_METRICS


@pytest.mark.parametrize("size", [(45, 60), (225, 300), (64, 200)])
def test_bands_are_those_of_the_reference(size):
    """As the library's OpenCV backend makes them, with half a pixel rounded to the even number: 1.5 to 2, 7.5 to 8."""
    rng = np.random.default_rng(2)
    for _ in range(10):
        mask = blob(rng, *size)
        rle = encode_mask(mask)
        expected = mask_util.decode(library_mask.rleToBoundary(rle, 0.02, backend="opencv")).astype(bool)
        np.testing.assert_array_equal(boundary_band(mask), expected)


def test_a_cropped_rle_is_the_decoded_one():
    rng = np.random.default_rng(3)
    corner = np.zeros((40, 60), dtype=bool)
    corner[-1, -1] = True
    masks = [*(blob(rng, 40, 60) for _ in range(20)), corner, corner[::-1, ::-1], np.ones((40, 60), dtype=bool)]
    for mask in masks:
        crop = cropped_mask(encode_mask(mask))
        np.testing.assert_array_equal(crop.pixels, mask[crop.window])
        assert crop.pixels.sum() == mask.sum()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert (crop.y, crop.x) == (rows[0], columns[0])
        assert crop.pixels.shape == (np.ptp(rows) + 1, np.ptp(columns) + 1)


@pytest.mark.parametrize("counts", [[2400], [100, 0, 2300], [0, 0, 2400], [2400, 0]])
def test_a_cropped_rle_may_be_empty(counts):
    assert cropped_mask({"size": [40, 60], "counts": counts}).pixels.size == 0
