"""The passes: what one hands to the next, which masks leave, and what is kept of those that vanish."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from phoenix_d2.cascade import CascadeResult, Correct, Predict, run_cascade
from phoenix_d2.evidence import EVIDENCE
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.structures import MaskPrediction, Prompts, RefinementStatus
from tests.refiner.scenes import SIDE, echo, image_of, random_rectangles, rectangles, statuses


def disagreeing(image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
    """Four candidates: the left half by much, nothing, the right half by little, and nothing."""
    answer = echo(image_embeddings, prompts)
    logits = torch.full_like(answer.low_res_logits, -1.0)
    logits[:, 0, :, : SIDE // 2], logits[:, 2, :, SIDE // 2 :] = 9.0, 2.0
    return replace(answer, low_res_logits=logits)


@pytest.mark.parametrize("candidate", ["best", "mean"])
def test_candidates(refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch, candidate: Any) -> None:
    """The best multimask candidate is the one predicted to be; in the mean, the single mask outweighs all others."""
    monkeypatch.setattr(refiner, "decode", disagreeing)
    options = RefineOptions(num_iters=1, candidate=candidate)
    result = refiner.refine(image_of(SIDE, SIDE), rectangles((SIDE, SIDE), (4, 4, 28, 28)), options=options)
    left, right = (0, 0, SIDE // 2, SIDE), (SIDE // 2, 0, SIDE, SIDE)
    assert result.masks.equal(rectangles((SIDE, SIDE), right if candidate == "best" else left))
    assert result.iou_predictions.item() == pytest.approx(0.75 if candidate == "best" else 0.6)
    assert result.evidence[0, EVIDENCE.index("unanimity")] == 0


def test_a_mask_that_the_decoder_erases_is_kept(refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch) -> None:
    def erase_first(image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
        answer = echo(image_embeddings, prompts)
        logits = answer.low_res_logits.clone()
        logits[0] = -1
        return replace(answer, low_res_logits=logits)

    monkeypatch.setattr(refiner, "decode", erase_first)
    masks = rectangles((96, 128), (20, 20, 80, 80), (30, 10, 90, 60))
    result = refiner.refine(image_of(96, 128), masks, keep_logits=True)
    assert statuses(result.status) == [RefinementStatus.KEPT_VANISHED, RefinementStatus.REFINED]
    assert result.masks[0].equal(masks[0])
    assert result.iou_predictions.tolist() == [0.0, 0.75]
    assert not result.low_res_logits[0].any() and (result.change_trace[0] == 1).all()


def test_a_mask_that_no_pixel_of_the_image_is_left_of_is_kept(
    refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def speck(image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
        """One weak low-resolution pixel, which interpolation drowns between the centres of the image's."""
        logits = torch.full((len(prompts), 4, SIDE, SIDE), -100.0)
        logits[:, :, 10, 10] = 0.1
        return MaskPrediction(logits, torch.ones(len(prompts), 4), logits)

    monkeypatch.setattr(refiner, "decode", speck)
    masks = rectangles((64, 64), (10, 10, 50, 50))
    result = refiner.refine(image_of(64, 64), masks, keep_logits=True)
    assert statuses(result.status) == [RefinementStatus.KEPT_VANISHED]
    assert result.masks.equal(masks)
    assert result.iou_trace.tolist() == [[0.0, 0.0]] and not result.low_res_logits.any()


def test_a_mask_that_vanishes_late_stays_what_it_was(refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = iter(range(3))

    def erase_in_second_pass(image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
        answer = echo(image_embeddings, prompts)
        return answer if next(passes) == 0 else replace(answer, low_res_logits=-torch.ones_like(answer.low_res_logits))

    monkeypatch.setattr(refiner, "decode", erase_in_second_pass)
    masks = rectangles((SIDE, SIDE), (5, 5, 25, 20))
    result = refiner.refine(image_of(SIDE, SIDE), masks, options=RefineOptions(num_iters=3))
    assert statuses(result.status) == [RefinementStatus.REFINED]
    assert result.masks.equal(masks)
    assert result.iou_trace.tolist() == [[0.75] * 3] and result.change_trace.tolist() == [[1.0] * 3]


def test_padding_alone_does_not_keep_a_mask_alive(refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch) -> None:
    def paint_padding(image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
        logits = torch.full((len(prompts), 4, SIDE, SIDE), -1.0)
        logits[..., SIDE // 2 :, :] = 1
        return MaskPrediction(logits, torch.ones(len(prompts), 4), logits)

    monkeypatch.setattr(refiner, "decode", paint_padding)
    result = refiner.refine(image_of(50, 100), rectangles((50, 100), (10, 10, 80, 40)))
    assert statuses(result.status) == [RefinementStatus.KEPT_VANISHED]


def test_what_the_decoder_paints_on_padding_is_not_handed_over(
    refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Prompts] = []

    def paint_padding_too(image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
        asked.append(prompts)
        answer = echo(image_embeddings, prompts)
        logits = answer.low_res_logits.clone()
        logits[..., SIDE // 2 :, :] = 1
        return replace(answer, low_res_logits=logits)

    monkeypatch.setattr(refiner, "decode", paint_padding_too)
    refiner.refine(image_of(64, 128), rectangles((64, 128), (12, 12, 80, 40)))
    first, second = asked
    assert first.mask_logits is not None and second.mask_logits is not None
    assert second.mask_logits.equal(first.mask_logits)
    assert second.point_coords.equal(first.point_coords)


def test_the_cascade_hands_over_binary_masks(refiner: MaskRefiner) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(1, 256, 8, 8, generator=generator)
    soft_masks = torch.rand(3, SIDE, SIDE, generator=generator)
    valid = torch.ones(3, SIDE, SIDE, dtype=torch.bool)
    once, twice = RefineOptions(num_iters=1), RefineOptions(num_iters=2)

    def predict(masks: Tensor, rows: Tensor) -> MaskPrediction:
        return refiner.decode(embeddings, refiner.prompter(masks, stride=refiner.stride))

    both = run_cascade(predict, soft_masks, valid, twice)
    first = run_cascade(predict, soft_masks, valid, once)
    second = run_cascade(predict, (first.logits > 0).float(), valid, once)
    assert both.logits.equal(second.logits)
    assert both.ious.equal(torch.cat([first.ious, second.ious], 1))
    assert both.changes[:, 1:].equal(second.changes)
    assert not both.logits.equal(first.logits), "a second pass that changes nothing would prove nothing"


def test_traces_follow_the_passes(refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch) -> None:
    def halve(image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
        """Take the left half of the mask away, and trust that less each time."""
        logits = prompts.mask_logits[:, 0].clone()
        area = (logits > 0).sum().item()
        columns = (logits > 0).any(1).nonzero()[:, 1]
        logits[..., : columns[len(columns) // 2]] = -10
        logits = logits[:, None].expand(-1, 4, -1, -1)
        return MaskPrediction(logits, torch.full((1, 4), area / SIDE**2), logits)

    monkeypatch.setattr(refiner, "decode", halve)
    masks = rectangles((SIDE, SIDE), (0, 0, 16, SIDE))
    result = refiner.refine(image_of(SIDE, SIDE), masks, options=RefineOptions(num_iters=3))
    assert result.change_trace.tolist() == [[0.5, 0.5, 0.5]]
    assert result.iou_trace.tolist() == [[0.5, 0.25, 0.125]]
    assert result.iou_predictions.tolist() == [0.125]
    assert result.masks.equal(rectangles((SIDE, SIDE), (14, 0, 16, SIDE)))


def settling(image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
    """Take the first column of a mask away, but that of the last one."""
    answer = echo(image_embeddings, prompts)
    logits = answer.low_res_logits.clone()
    first = (logits[:, 0] > 0).any(1).long().argmax(1).tolist()
    for mask_logits, column in zip(logits, first, strict=True):
        if column < SIDE - 4:
            mask_logits[..., column] = -1
    return replace(answer, low_res_logits=logits)


def test_a_mask_that_no_longer_changes_leaves_the_cascade(
    refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def spy(image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
        asked.append(len(prompts))
        return settling(image_embeddings, prompts)

    monkeypatch.setattr(refiner, "decode", spy)
    image = image_of(SIDE, SIDE)
    # masks end at the same column, and reach SIDE - 4, where they stay, after 1, 3 and 12 passes
    masks = rectangles((SIDE, SIDE), *[(SIDE - 4 - n, 4, SIDE, 24) for n in (1, 3, 12)])
    result = refiner.refine(image, masks, options=RefineOptions(num_iters=6, chunk_size=3))
    # a mask is found unchanged one pass after it settled
    assert asked == [3, 3, 2, 2, 1, 1]
    assert result.masks.equal(rectangles((SIDE, SIDE), *[(SIDE - n, 4, SIDE, 24) for n in (4, 4, 10)]))
    assert (result.change_trace[:, -1] == 1).tolist() == [True, True, False]
    asked.clear()
    loose = refiner.refine(image, masks, options=RefineOptions(num_iters=6, stop_overlap=0.9, chunk_size=3))
    # the first pass leaves 4/5, 6/7 and 15/16 of them
    assert asked == [3, 2, 1, 1]
    assert loose.change_trace[2].tolist() == pytest.approx([15 / 16] * 6)


NUM_PASSES = 15


def test_stopping_at_equality_changes_nothing(refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch) -> None:
    image, masks = image_of(SIDE, SIDE), rectangles((SIDE, SIDE), *[(20 - n, 4, SIDE, 24) for n in range(0, 15, 2)])
    masks[:, :, :12] &= random_rectangles(8, (SIDE, SIDE), SIDE)[:, :, :12]
    decode, sizes = refiner.decode, []

    def spy(image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
        """Masks that settle, with all else that a decoder says of them."""
        sizes.append(len(prompts))
        settled = settling(image_embeddings, prompts).low_res_logits[:, :1]
        answer = decode(image_embeddings, prompts)
        # the further candidates are the same mask, more and less sure of it
        return replace(answer, low_res_logits=settled * torch.tensor([1.0, 0.5, 2.0, 0.1])[:, None, None])

    monkeypatch.setattr(refiner, "decode", spy)
    options = RefineOptions(num_iters=NUM_PASSES)
    stopped = refiner.refine(image, masks, options=options, keep_logits=True)
    assert len(masks) < sizes[-1] + sum(sizes) < NUM_PASSES * len(masks), "some leave, some stay"
    # a first pass is never the last: pass by pass, no mask ever leaves

    def pass_by_pass(
        predict: Predict, soft_masks: Tensor, valid: Tensor, options: RefineOptions, correct: Correct | None = None
    ) -> CascadeResult:
        passes = []
        for _ in range(NUM_PASSES):
            passes.append(run_cascade(predict, soft_masks, valid, replace(options, num_iters=1), correct))
            soft_masks = ((passes[-1].logits > 0) & valid).float()
        traces = {name: torch.cat([getattr(each, name) for each in passes], 1) for name in ("ious", "changes")}
        return replace(passes[-1], **traces)

    monkeypatch.setattr("phoenix_d2.refiner.run_cascade", pass_by_pass)
    plain = refiner.refine(image, masks, options=options, keep_logits=True)
    assert stopped.masks.equal(plain.masks) and stopped.status.equal(plain.status)
    for name in ("low_res_logits", "iou_trace", "change_trace", "evidence"):
        torch.testing.assert_close(getattr(stopped, name), getattr(plain, name), atol=1e-4, rtol=1e-4, equal_nan=True)
