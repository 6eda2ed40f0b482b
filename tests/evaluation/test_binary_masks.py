"""Measures of binary masks, on cases worked by hand and against slow and plain versions of themselves."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from phoenix_d2.evaluation.binary_masks import average, boundary_f, mean_boundary_accuracy, score_mask, summarise


def rectangle(x0, y0, x1, y1, size=(60, 80)):
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def blobs(seed, size=(400, 560)):
    noise = np.random.default_rng(seed).random(size).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 6) > 0.505


def test_overlaps_by_hand():
    # 20 x 20 against the same, ten pixels to the right: 200 shared, 600 covered
    score = score_mask(rectangle(10, 10, 30, 30), rectangle(20, 10, 40, 30))
    assert (score.intersection, score.union) == (200, 600)
    assert score.iou == pytest.approx(1 / 3) and score.dice == pytest.approx(0.5)


def test_a_summary_has_means_and_the_pooled_iou():
    right, half = (
        score_mask(rectangle(0, 0, 10, 10), rectangle(0, 0, 10, 10)),
        score_mask(rectangle(0, 0, 30, 10), rectangle(0, 0, 60, 10)),
    )
    figures = summarise([right, half])
    assert figures["IoU"] == pytest.approx(75)
    assert figures["IoU pooled"] == pytest.approx(100 * (100 + 300) / (100 + 600))
    assert figures["Dice"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert average([figures, dict.fromkeys(figures, 0.0)])["IoU"] == pytest.approx(37.5)
    assert all(math.isnan(value) for value in summarise([]).values())


def test_empty_masks():
    empty, full, some = np.zeros((60, 80), bool), np.ones((60, 80), bool), rectangle(10, 10, 30, 30)
    both = score_mask(empty, empty)
    assert (both.iou, both.dice, both.boundary_f) == (1, 1, 1) and math.isnan(both.boundary_accuracy)
    assert (score_mask(some, empty).iou, score_mask(some, empty).boundary_f) == (0, 0)
    assert (score_mask(empty, some).iou, score_mask(empty, some).boundary_f) == (0, 0)
    # a full image has no boundary
    assert score_mask(full, full).boundary_f == 1 and math.isnan(score_mask(full, full).boundary_accuracy)
    assert summarise([both, score_mask(some, some)])["mBA"] == 100


def test_boundary_f_by_hand():
    # a diagonal of 100 pixels: tolerance of one pixel
    target = rectangle(10, 10, 30, 30)
    assert boundary_f(rectangle(11, 10, 31, 30), target) == 1
    # two pixels off: of the 80 pixels of each outline, 20 of each row and the two that end the near column's lie within
    # one of the other outline
    assert boundary_f(rectangle(12, 10, 32, 30), target) == pytest.approx(42 / 80)
    assert boundary_f(rectangle(50, 10, 70, 30), target) == 0


def plain_boundary_f(mask, target):
    radius = math.ceil(0.008 * math.hypot(*mask.shape))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x * x + y * y <= radius * radius).astype(np.uint8)

    def boundary(m):
        b = np.zeros_like(m)
        b[:-1, :-1] = (m[:-1, :-1] ^ m[:-1, 1:]) | (m[:-1, :-1] ^ m[1:, :-1]) | (m[:-1, :-1] ^ m[1:, 1:])
        b[-1, :-1], b[:-1, -1] = m[-1, :-1] ^ m[-1, 1:], m[:-1, -1] ^ m[1:, -1]
        return b

    own, right = boundary(mask), boundary(target)
    precision = (own & (cv2.dilate(right.astype(np.uint8), disk) > 0)).sum() / own.sum()
    recall = (right & (cv2.dilate(own.astype(np.uint8), disk) > 0)).sum() / right.sum()
    return 2 * precision * recall / (precision + recall)


def test_boundary_f_is_that_of_dilated_boundaries():
    for seed in range(3):
        mask, target = blobs(seed), blobs(seed) ^ (blobs(seed + 10) & blobs(seed + 20))
        assert boundary_f(mask, target) == pytest.approx(plain_boundary_f(mask, target), abs=1e-6)


def test_mean_boundary_accuracy_by_hand():
    # 60 + 80 pixels allow a radius of one: every radius is 1, the cross of 3 x 3
    target = rectangle(10, 10, 30, 30)
    assert mean_boundary_accuracy(target, target) == 1
    # the band is 76 pixels inside and 80 outside; one column more has 20 of the outer ones wrong
    assert mean_boundary_accuracy(rectangle(10, 10, 31, 30), target) == pytest.approx(1 - 20 / 156)
    assert mean_boundary_accuracy(rectangle(50, 50, 60, 60), target) == pytest.approx(1 - 76 / 156)


def test_mean_boundary_accuracy_on_the_crop_is_that_of_the_image():
    mask, target = blobs(0, (700, 900)), blobs(1, (700, 900))
    target[:300], target[:, 600:] = False, False
    steps = [int((1600 / 300 - 1) / 5 * i) for i in range(5)]
    assert len(set(steps)) > 3
    shares = []
    for radius in (1 + step for step in steps):
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        region = cv2.morphologyEx(target.astype(np.uint8), cv2.MORPH_GRADIENT, kernel) > 0
        shares.append((mask == target)[region].mean())
    assert mean_boundary_accuracy(mask, target) == pytest.approx(np.mean(shares))


def test_masks_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"got \(60, 80\) and \(5, 5\): resize the mask"):
        score_mask(rectangle(0, 0, 5, 5), np.zeros((5, 5), bool))
