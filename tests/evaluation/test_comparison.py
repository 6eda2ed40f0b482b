"""Comparing refiners: cases whose figures can be worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from phoenix_d2.evaluation.comparison import (
    COARSE,
    Score,
    bootstrap_interval,
    compare,
    draw_gains,
    pair_by_image,
    pair_by_overlap,
    score_masks,
    to_markdown,
)
from phoenix_d2.structures import RefinementStatus


def score(*ious, images=(1, 1, 2, 3), milliseconds=20.0):
    overlaps = {"IoU": ious, "bIoU 2 %": [iou / 2 for iou in ious], "bIoU 1 %": [iou / 4 for iou in ious]}
    return Score(images, overlaps, ap=50.0, boundary_ap=25.0, kept=10.0, milliseconds=milliseconds)


@pytest.fixture
def scores():
    coarse = score(50, 60, 70, 80, milliseconds=None)
    return {
        "set/easy": {COARSE: coarse, "one": score(60, 70, 80, 90), "two": score(50, 60.5, 60, 90)},
        "set/hard": {COARSE: coarse, "one": score(40, 60, 70, 80), "two": score(50, 60, 70, 80)},
    }


def test_bootstrap_draws_images_not_masks():
    # of two images, both draws fall on the first, on one each, or on the second: with chances 1/4, 1/2, 1/4
    values, images = np.array([0.0, 0.0, 0.0, 6.0]), ["a", "a", "a", "b"]
    wide = bootstrap_interval(values, images)
    assert (wide.mean, wide.low, wide.high) == (1.5, 0.0, 6.0)
    narrow = bootstrap_interval(values, images, confidence=0.4)
    assert (narrow.mean, narrow.low, narrow.high) == (1.5, 1.5, 1.5)


def test_bootstrap_agrees_with_the_standard_error():
    values = np.random.default_rng(1).normal(3, 2, 400)
    interval = bootstrap_interval(values, range(400), num_samples=10000)
    np.testing.assert_allclose(
        [interval.low, interval.high], values.mean() + 1.96 * values.std() / 20 * np.r_[-1, 1], atol=0.02
    )
    assert interval == bootstrap_interval(values, range(400), num_samples=10000)
    assert interval != bootstrap_interval(values, range(400), num_samples=10000, seed=1)


def test_detections_pair_with_what_they_overlap_most(dataset, prediction, square):
    annotations = dataset([(1, 1, square(10)), (2, 1, square(10)), (2, 2, square(14)), (2, 1, square(60))])
    results = [
        prediction(1, 1, square(90)),  # alone in its image
        prediction(2, 1, square(13)),  # nearer to the second, whose class is another
        prediction(2, 1, square(40)),  # a mistake
        prediction(2, 1, square(40), gt_id=2),
    ]
    paired = pair_by_overlap(annotations, results)
    assert [result["gt_id"] for result in paired] == [1, 3, 2]
    assert [result["segmentation"] for result in paired] == [results[i]["segmentation"] for i in (0, 1, 3)]
    assert len(pair_by_overlap(annotations, results[2:3], min_iou=0.0)) == 1
    annotations["annotations"] = [{**record, "iscrowd": 1} for record in annotations["annotations"]]
    assert pair_by_overlap(annotations, results[:3]) == []


def test_results_pair_with_the_only_object_of_their_image(dataset, prediction, square):
    annotations = dataset([(1, 1, square(10)), (2, 1, square(10)), (2, 1, square(60))])
    results = [prediction(1, 1, square(12)), prediction(2, 1, square(12), gt_id=3)]
    assert [result["gt_id"] for result in pair_by_image(annotations, results)] == [1, 3]
    assert "gt_id" not in results[0]
    with pytest.raises(ValueError, match=r"Result 1 .* no 'gt_id', and its image 2 has 2 objects: add the id"):
        pair_by_image(annotations, [results[0], prediction(2, 1, square(12))])
    annotations["annotations"][2]["iscrowd"] = 1
    assert pair_by_image(annotations, [prediction(2, 1, square(12))])[0]["gt_id"] == 2


def test_masks_are_measured_one_by_one(dataset, prediction, square):
    annotations = dataset([(1, 1, square(10)), (2, 1, square(10))])
    results = [prediction(1, 1, square(10), gt_id=1), prediction(2, 1, square(30), gt_id=2)]
    statuses = [int(RefinementStatus.REFINED), int(RefinementStatus.KEPT_VANISHED)]
    measured = score_masks(annotations, results, statuses=statuses, seconds=0.5)
    assert measured.image_ids == [1, 2] and measured.overlaps["IoU"] == [100, pytest.approx(100 / 3, abs=1e-3)]
    # bands 3 pixels wide of squares of 40, 20 apart: above and below they share 20 columns
    assert measured.overlaps["bIoU 2 %"][1] == pytest.approx(100 * 120 / (2 * 444 - 120), abs=1e-3)
    assert (measured.kept, measured.milliseconds) == (50, 250)
    assert measured.ap == pytest.approx(50.5, abs=0.1)
    assert Score(**json.loads(json.dumps(vars(measured)))) == measured


def test_rows_say_what_changed_for_how_many_masks(scores):
    rows = {(row["input"], row["refiner"]): row for row in compare(scores)}
    assert list(rows) == [(name, refiner) for name in scores for refiner in (COARSE, "one", "two")]
    coarse, one, two = (rows["set/easy", refiner] for refiner in (COARSE, "one", "two"))
    assert (coarse["IoU"], coarse["bIoU 1 %"], coarse["AP"], coarse["ms"]) == (65, 16.25, 50, None)
    assert coarse["gain"] is coarse["better"] is coarse["lead"] is one["lead"] is None
    assert one["gain"]["IoU"] == {"mean": 10, "low": 10, "high": 10} and one["gain"]["bIoU 2 %"]["mean"] == 5
    # half a point is no change
    assert (two["better"], two["worse"], two["masks"]) == (25, 25, 4)
    assert two["lead"]["IoU"]["mean"] == pytest.approx((10 + 9.5 + 20 + 0) / 4)
    assert rows["set/hard", "two"]["gain"]["IoU"] == {"mean": 0, "low": 0, "high": 0}


def test_tables_and_plot(scores, tmp_path):
    rows = json.loads(json.dumps(compare(scores)))
    text = to_markdown(rows)
    lines = [line.replace(" ", "") for line in text.splitlines()]
    assert "|one|2|1(1)|1(0)|+3.75|1(1)|1(0)|+1.88|20.0|" in lines
    assert "|set/easy|4|two|65.1|32.6|16.3|50.0|25.0|25.0|25.0|10.0|20.0|" in lines
    assert "|set/easy|4|coarse|65.0|32.5|16.2|50.0|25.0|-|-|-|-|" in lines
    assert "| +10.0 [+10.0, +10.0] |" in text and "one to it, IoU" in text
    draw_gains(rows, tmp_path / "gains.png")
    assert (tmp_path / "gains.png").stat().st_size > 5000
