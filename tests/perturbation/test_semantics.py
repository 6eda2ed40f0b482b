"""Semantic correlation, on cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from phoenix_d2.perturbation.semantics import FEATURES, pearson, semantic_correlation, semantic_features

SIDE = 64
EDGE = SIDE // 2


@pytest.fixture
def two_halves() -> np.ndarray:
    """A picture with one edge, upright in its middle."""
    image = np.full((SIDE, SIDE, 3), 40, np.uint8)
    image[:, EDGE:] = 200
    return image


@pytest.fixture
def left_half() -> np.ndarray:
    return np.arange(SIDE)[None].repeat(SIDE, axis=0) < EDGE


def flipped(mask: np.ndarray, columns: slice) -> np.ndarray:
    wrong = mask.copy()
    wrong[:, columns] = ~wrong[:, columns]
    return wrong


def test_pearson_by_hand() -> None:
    ramp = np.array([[1.0, 2.0], [3.0, 4.0]])
    corner = np.array([[0.0, 0.0], [0.0, 1.0]])
    # deviations (-1.5, -0.5, 0.5, 1.5) and (-1, -1, -1, 3) / 4: 1.5 / sqrt(5 * 0.75)
    expected = 1.5 / np.sqrt(5 * 0.75)
    np.testing.assert_allclose(pearson(ramp, np.stack([ramp, -ramp, corner])), [1, -1, expected])
    assert np.isnan(pearson(ramp, np.ones((2, 2))))
    assert pearson(ramp, 7 + 3 * corner) == pytest.approx(expected)


def test_features_peak_at_the_edge_and_are_absent_from_flat_ground(two_halves: np.ndarray) -> None:
    features = semantic_features(two_halves)
    assert features.shape == (len(FEATURES), SIDE, SIDE)
    assert features.min() == 0 and features.max() == 1
    assert (features[:, :, EDGE - 2 : EDGE + 2].min(axis=(1, 2)) > 0.5).all()
    assert (features[:, :, : EDGE - 16] < 0.01).all()
    np.testing.assert_allclose(features[2], (features[0] + features[1]) / 2, atol=1e-6)


def test_errors_on_an_edge_correlate_and_errors_on_flat_ground_do_not(
    two_halves: np.ndarray, left_half: np.ndarray
) -> None:
    features = semantic_features(two_halves)
    on_edge = semantic_correlation(features, left_half, flipped(left_half, slice(EDGE - 1, EDGE + 2)))
    on_flat = semantic_correlation(features, left_half, flipped(left_half, slice(8, 11)))
    assert (on_edge > 0.85).all()
    assert ((on_flat > -0.5) & (on_flat < 0)).all()


def test_the_sign_is_that_of_the_features(two_halves: np.ndarray, left_half: np.ndarray) -> None:
    features = semantic_features(two_halves)
    wrong = flipped(left_half, slice(EDGE - 4, EDGE))
    correlation = semantic_correlation(features, left_half, wrong)
    np.testing.assert_allclose(semantic_correlation(1 - features, left_half, wrong), -correlation, atol=1e-6)


def test_what_is_far_from_mask_and_target_does_not_count(two_halves: np.ndarray) -> None:
    image = np.full((4 * SIDE, 4 * SIDE, 3), 40, np.uint8)
    image[:SIDE, :SIDE] = two_halves
    target = np.zeros(image.shape[:2], bool)
    target[20:44, 20:44] = True
    wrong = target.copy()
    wrong[:, 40:44] = False
    before = semantic_correlation(semantic_features(image), target, wrong)
    image[3 * SIDE :: 4] = 255
    far = semantic_features(image)
    # each map is scaled by its maximum, which correlation does not feel
    np.testing.assert_allclose(semantic_correlation(far, target, wrong)[:2], before[:2], atol=1e-4)


def test_nothing_wrong_and_nothing_there(two_halves: np.ndarray, left_half: np.ndarray) -> None:
    assert np.isnan(semantic_correlation(semantic_features(two_halves), left_half, left_half)).all()
    flat = semantic_features(np.full((SIDE, SIDE, 3), 90, np.uint8))
    assert np.isnan(semantic_correlation(flat, left_half, flipped(left_half, slice(8, 11)))).all()
    empty = np.zeros_like(left_half)
    assert np.isnan(semantic_correlation(semantic_features(two_halves), empty, empty)).all()
