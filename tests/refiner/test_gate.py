"""The gate at work: what it is shown, and what becomes of the masks that it judges."""

from __future__ import annotations

import pytest
import torch

from phoenix_d2.evidence import EVIDENCE, MaskSource
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.structures import RefinementStatus
from tests.gates import gate_of
from tests.refiner.scenes import SIDE, image_of, random_rectangles, rectangles, statuses


def test_a_gate_that_rejects_everything_returns_the_coarse_masks(refiner: MaskRefiner) -> None:
    image, masks = image_of(96, 128), rectangles((96, 128), (20, 20, 80, 80), (30, 10, 90, 60), (0, 0, 0, 0))
    ungated = refiner.refine(image, masks, keep_logits=True)
    assert not ungated.masks[:2].equal(masks[:2]) and ungated.predicted_gain.isnan().all()
    refiner.gate = gate_of(-0.1)
    gated = refiner.refine(image, masks, keep_logits=True)
    assert gated.masks.equal(masks)
    assert statuses(gated.status) == [RefinementStatus.KEPT_REJECTED] * 2 + [RefinementStatus.KEPT_EMPTY]
    assert gated.predicted_gain[:2].tolist() == pytest.approx([-0.1, -0.1]) and gated.predicted_gain[2].isnan()
    for name in ("iou_predictions", "low_res_logits", "iou_trace", "change_trace"):
        assert getattr(gated, name).equal(getattr(ungated, name)), "what was rejected can be looked into"


def test_a_gate_that_accepts_everything_changes_nothing(refiner: MaskRefiner, device: str) -> None:
    image, masks = image_of(96, 128), random_rectangles(5, (96, 128), 60)
    refiner.to(device).gate = gate_of(0.1)
    gated, off = (refiner.refine(image, masks, options=RefineOptions(num_iters=2, gate=g)) for g in ("auto", "off"))
    assert gated.masks.equal(off.masks) and gated.status.equal(off.status)
    assert off.predicted_gain.isnan().all() and gated.predicted_gain.isfinite().all()


def test_what_is_known_of_the_source_counts_beside_the_masks_of_the_image(refiner: MaskRefiner) -> None:
    image, masks = image_of(96, 128), random_rectangles(5, (96, 128), 60)
    column = EVIDENCE.index("overlap")
    overlap = refiner.refine(image, masks).evidence[:, column].mean().item()
    # goes by the source's mean overlap alone, and needs more than the masks of this image have
    gate = gate_of(0.0, others=1.0, mean=overlap, margin=0.1, prior_masks=5)
    refiner.gate = gate
    alone = refiner.refine(image, masks)
    assert alone.masks.equal(masks) and alone.predicted_gain.abs().max() < 1e-4
    mean = [0.5] * len(EVIDENCE)
    mean[column] = overlap + 0.25
    known = refiner.refine(image, masks, source=MaskSource(90, tuple(mean)))
    # 95 masks, of which 5 are no different
    assert known.predicted_gain.tolist() == pytest.approx([0.95 * 90 / 95] * 5, abs=1e-4)
    assert statuses(known.status) == [RefinementStatus.REFINED] * 5
    for name in ("evidence", "iou_predictions", "change_trace"):
        torch.testing.assert_close(getattr(known, name), getattr(alone, name), equal_nan=True)


def test_evidence_is_measured_of_what_was_decoded(refiner: MaskRefiner) -> None:
    masks = rectangles((96, 128), (20, 20, 80, 80), (0, 0, 0, 0), (60, 41, 65, 45))
    result = refiner.refine(image_of(96, 128), masks)
    assert result.evidence.shape == (3, len(EVIDENCE)) and result.evidence[1].isnan().all()
    known = result.evidence[[0, 2]].isfinite().all(0)
    assert {name for name, is_known in zip(EVIDENCE, known, strict=True) if not is_known} == {"coarse_iou"}
    agreement = result.evidence[:, EVIDENCE.index("agreement")]
    assert agreement[[0, 2]].equal(result.change_trace[[0, 2], -1])
    once = refiner.refine(image_of(96, 128), masks, options=RefineOptions(num_iters=1))
    assert once.evidence[:, EVIDENCE.index("agreement")].isnan().all()


def test_the_fixed_gate_goes_by_its_thresholds(echo_refiner: MaskRefiner) -> None:
    image, masks = image_of(SIDE, SIDE), rectangles((SIDE, SIDE), (5, 5, 25, 20))
    for min_iou, status in ((0.7, RefinementStatus.REFINED), (0.8, RefinementStatus.KEPT_REJECTED)):
        options = RefineOptions(num_iters=1, gate="fixed", gate_min_iou=min_iou)
        result = echo_refiner.refine(image, masks, options=options)
        assert statuses(result.status) == [status]
        assert result.predicted_gain.isnan().all()


def test_a_calibrated_gate_that_is_not_there_is_refused(refiner: MaskRefiner) -> None:
    masks = rectangles((96, 128), (20, 20, 80, 80))
    with pytest.raises(ValueError, match="this refiner has none: calibrate one"):
        refiner.refine(image_of(96, 128), masks, options=RefineOptions(gate="calibrated"))
