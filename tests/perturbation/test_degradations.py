"""Degradations at image resolution."""

from __future__ import annotations

import numpy as np
import pytest

from phoenix_d2.perturbation.degradations import DEGRADATIONS, coarsen_polygon, iou_threshold, mask_head
from phoenix_d2.perturbation.morphology import BoolMask


def disc(side: int, radius: float, hole: float = 0) -> BoolMask:
    y, x = np.ogrid[:side, :side]
    distance = np.hypot(y - side / 2, x - side / 2)
    return (distance < radius) & (distance >= hole)


def iou(a: BoolMask, b: BoolMask) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_mask_head_keeps_a_big_rectangle() -> None:
    mask = np.zeros((300, 400), bool)
    mask[40:260, 50:350] = True
    assert iou(mask_head(mask), mask) > 0.98


def test_mask_head_loses_what_is_finer_than_its_grid() -> None:
    mask = np.zeros((280, 280), bool)
    mask[100:180] = True
    mask[40:240, 140:142] = True
    degraded = mask_head(mask)
    assert degraded[110:170, 10:270].all()
    assert not degraded[50:90].any()


def test_mask_head_of_a_finer_grid_loses_less() -> None:
    mask = disc(200, 80, hole=20)
    quality = [iou(mask_head(mask, size=size), mask) for size in (7, 14, 28, 56)]
    assert quality == sorted(quality) and quality[-1] > 0.97


def test_polygon_keeps_holes() -> None:
    mask = disc(200, 80, hole=40)
    degraded = coarsen_polygon(mask, tolerance=0.02)
    assert not degraded[90:110, 90:110].any()
    assert 0.7 < iou(degraded, mask) < 1


def test_polygon_of_tolerance_zero_is_the_mask() -> None:
    mask = disc(120, 50, hole=20)
    assert np.array_equal(coarsen_polygon(mask, tolerance=0), mask)


def test_polygon_of_a_rectangle_is_the_rectangle() -> None:
    mask = np.zeros((60, 60), bool)
    mask[10:40, 5:50] = True
    assert np.array_equal(coarsen_polygon(mask, tolerance=0.02), mask)


def test_morphological_reaches_its_iou() -> None:
    mask = disc(120, 40)
    noisy = DEGRADATIONS["morphological"](mask, 0.75, np.random.default_rng(0))
    assert iou_threshold(0.75) == pytest.approx(0.6)
    assert 0.6 <= iou(noisy, mask) < 0.75


@pytest.mark.parametrize("name", sorted(DEGRADATIONS))
def test_stronger_is_worse(name: str) -> None:
    y, x = np.ogrid[:240, :240]
    petals = np.hypot(y - 120, x - 120) < 70 + 25 * np.sin(9 * np.arctan2(y - 120, x - 120))
    quality = [iou(DEGRADATIONS[name](petals, s, np.random.default_rng(0)), petals) for s in (0.0, 0.5, 1.0)]
    assert quality[0] > quality[1] > quality[2] > 0.3
    assert quality[0] > 0.85


@pytest.mark.parametrize("name", sorted(DEGRADATIONS))
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_nothing_vanishes_and_empty_stays_empty(name: str, strength: float) -> None:
    rng = np.random.default_rng(0)
    thin = np.eye(200, dtype=bool)
    assert DEGRADATIONS[name](thin, strength, rng).any()
    dot = np.zeros((20, 20), bool)
    dot[19, 0] = True
    assert DEGRADATIONS[name](dot, strength, rng).any()
    assert not DEGRADATIONS[name](np.zeros((20, 20), bool), strength, rng).any()
