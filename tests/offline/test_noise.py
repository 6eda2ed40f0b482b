"""Statistics of noise on one picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phoenix_d2.data.mask_json import encode_mask
from phoenix_d2.offline.noise import (
    ADVERSARIAL,
    MORPHOLOGICAL,
    THRESHOLDS,
    NoiseDraw,
    attack_table,
    correlation_table,
    draw_gallery,
    draw_histograms,
    measure_image,
    report,
)
from phoenix_d2.perturbation import NoiseSampler
from phoenix_d2.perturbation.guidance import ALL_GUIDES
from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam.build import build_refiner


@pytest.fixture(scope="module")
def target():
    target = np.zeros((96, 128), bool)
    target[20:80, 30:100] = True
    return target


@pytest.fixture(scope="module")
def image(target):
    return np.where(target[..., None], (200, 90, 60), (50, 70, 90)).astype(np.uint8)


@pytest.fixture(scope="module")
def made(test_encoder, image, target):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_refiner("test", options=RefineOptions()).eval()
    shifted = {"image_id": 1, "segmentation": encode_mask(np.roll(target, 6, axis=1)), "gt_id": 7}
    return measure_image(
        network,
        image,
        [{"id": 7, "segmentation": encode_mask(target)}, {"id": 8, "segmentation": encode_mask(target)}],
        {"model": [shifted, {**shifted, "gt_id": 99}]},
        sampler=NoiseSampler(num_embeddings=2, max_steps=2, max_decays=1, morphology_prob=0.4),
        dense_prompt="target",
        generator=torch.Generator().manual_seed(0),
    )


def test_every_guide_and_threshold_is_tried_on_every_target(made):
    draws = [draw for draw, _ in made]
    of_attacks = [(d.annotation_id, d.guide, d.threshold) for d in draws if d.source == ADVERSARIAL]
    assert sorted(of_attacks) == sorted((i, g, t) for i in (7, 8) for g in ALL_GUIDES for t in THRESHOLDS)
    morphological = [d for d in draws if d.source == MORPHOLOGICAL]
    assert len(morphological) == 2 * len(THRESHOLDS)
    # as strong as asked, up to the resolution of the low-resolution frame
    assert all(abs(d.iou - d.threshold) < 0.12 for d in morphological)
    assert {d.outcome for d in morphological} == {"morphological"}


def test_models_masks_are_measured_as_they_are(made, target):
    ((draw, mask),) = [pair for pair in made if pair[0].source == "model"]
    np.testing.assert_array_equal(mask, np.roll(target, 6, axis=1))
    assert draw.iou == pytest.approx(64 / 76) and draw.annotation_id == 7
    # a shift is wrong along two outlines
    assert min(draw.correlation) > 0.3


def draws_of(outcomes):
    return [
        NoiseDraw(
            source=ADVERSARIAL, annotation_id=i, threshold=0.5, guide="expansion", outcome=outcome, num_steps=i,
            iou=0.5, correlation=(0.0, 0.0, c),
        )
        for i, (outcome, c) in enumerate(outcomes)
    ]  # fmt: skip


def test_tables_by_hand():
    draws = draws_of([("in_band", 0.1), ("in_band", 0.3), ("exhausted_above", -0.1), ("started_below", np.nan)])
    (row,) = attack_table(draws)
    assert (row["guide"], row["threshold"], row["attacks"], row["steps"]) == ("expansion", 0.5, 4, 1.5)
    assert (row["in_band"], row["exhausted_above"], row["started_below"], row["exhausted_below"]) == (50, 25, 25, 0)
    everything, expansion = correlation_table(draws)
    assert (everything["source"], expansion["source"]) == (ADVERSARIAL, f"{ADVERSARIAL}, expansion")
    assert everything["both"] == pytest.approx(0.1) and everything["masks"] == 4
    assert everything["positive"] == pytest.approx(200 / 3)
    assert everything["std"] == pytest.approx(np.std([0.1, 0.3, -0.1]))


def test_pictures_and_text(made, image, target, tmp_path):
    draws = [draw for draw, _ in made]
    draw_histograms(draws).savefig(tmp_path / "histograms.png")
    assert "| model " in report(draws) and "| inversion " in report(draws)
    gallery = draw_gallery(image, target, [pair for pair in made if pair[0].annotation_id == 7])
    # four rows (three guides, morphology) of six pictures with a line of title each
    assert gallery.dtype == np.uint8 and gallery.shape[1] > 6 * 192 and gallery.shape[0] > 4 * (100 + 22)
