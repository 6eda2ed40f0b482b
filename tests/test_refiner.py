"""Encoding, decoding and the cascade."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from phoenix_d2.gate import EVIDENCE, RefinementGate
from phoenix_d2.ops.frames import Frame
from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.prompting.cues import UserCues
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.structures import MaskPrediction, PointLabel, Prompts, RefinementStatus

# one image pixel is one low-resolution pixel of the test encoder
SIDE = 32


@pytest.fixture
def refiner(test_encoder: None) -> MaskRefiner:
    """A refiner of random weights, which changes every mask."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_refiner("test", options=RefineOptions(num_iters=2)).eval()


def echo(image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
    """Decode to the mask prompt itself, so that only frames and bookkeeping act on a mask."""
    assert prompts.mask_logits is not None
    iou = torch.tensor([0.9, 0.5, 0.75, 0.25]).expand(len(prompts), 4)
    return MaskPrediction(prompts.mask_logits.expand(-1, 4, -1, -1), iou, prompts.mask_logits)


@pytest.fixture
def echo_refiner(refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch) -> MaskRefiner:
    """A refiner that answers with what it is asked."""
    monkeypatch.setattr(refiner, "decode", echo)
    return refiner


@pytest.fixture
def asked(refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Prompts]]:
    """The prompts of every decoder pass, which echoes."""
    prompts: list[Prompts] = []

    def spy(image_embeddings: Tensor, asked_with: Prompts) -> MaskPrediction:
        prompts.append(asked_with)
        return echo(image_embeddings, asked_with)

    monkeypatch.setattr(refiner, "decode", spy)
    return prompts


@pytest.fixture
def encoded(refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The batches that went into the encoder."""
    batches: list[Tensor] = []
    encode = refiner.encode_image

    def spy(images: Tensor) -> Tensor:
        batches.append(images)
        return encode(images)

    monkeypatch.setattr(refiner, "encode_image", spy)
    return batches


def disagreeing(image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
    """Four candidates: the left half by much, nothing, the right half by little, and nothing."""
    answer = echo(image_embeddings, prompts)
    logits = torch.full_like(answer.low_res_logits, -1.0)
    logits[:, 0, :, : SIDE // 2], logits[:, 2, :, SIDE // 2 :] = 9.0, 2.0
    return replace(answer, low_res_logits=logits)


def image_of(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def rectangles(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Tensor:
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def random_rectangles(n: int, size: tuple[int, int], max_side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sides = torch.randint(1, max_side + 1, (n, 2), generator=generator)
    corners = (torch.rand(n, 2, generator=generator) * (torch.tensor(size[::-1]) - sides)).long()
    return rectangles(size, *(tuple(box) for box in torch.cat([corners, corners + sides], 1).tolist()))


def statuses(status: Tensor) -> list[RefinementStatus]:
    return [RefinementStatus(value) for value in status.tolist()]


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


def test_no_masks_give_no_masks_and_encode_nothing(refiner: MaskRefiner, encoded: list[Tensor]) -> None:
    result = refiner.refine(image_of(48, 64), torch.zeros(0, 48, 64, dtype=torch.bool))
    assert len(result) == 0
    assert result.masks.shape == (0, 48, 64) and result.low_res_logits.shape == (0, 0, 0)
    assert result.iou_trace.shape == result.change_trace.shape == (0, 2)
    assert not encoded


@pytest.mark.parametrize("size", [(96, 128), (128, 96), (77, 101), (150, 60)])
def test_what_the_decoder_says_lands_where_it_was_asked(echo_refiner: MaskRefiner, size: tuple[int, int]) -> None:
    height, width = size
    masks = rectangles(size, (width // 4, height // 5, 3 * width // 4, 4 * height // 5), (0, 0, width, height))
    result = echo_refiner.refine(image_of(*size), masks)
    assert (mask_iou(result.masks, masks) > 0.85).all(), "a low-resolution pixel is up to 5 pixels wide"
    assert result.iou_predictions.tolist() == [0.75, 0.75], "the best multimask candidate, never the single mask"
    assert statuses(result.status) == [RefinementStatus.REFINED] * 2


def test_inputs_are_never_changed(refiner: MaskRefiner) -> None:
    image, masks = image_of(60, 80), rectangles((60, 80), (10, 10, 50, 40), (2, 2, 5, 4), (0, 0, 0, 0))
    points, boxes = torch.tensor([[[30.0, 20.0]]] * 3), torch.tensor([[8.0, 8.0, 52.0, 44.0]] * 3)
    labels = torch.ones(3, 1, dtype=torch.long)
    given = image, masks, points, labels, boxes
    copies = [tensor.clone() for tensor in given]
    refiner.refine(image, masks, points=points, point_labels=labels, boxes=boxes)
    assert all(tensor.equal(copy) for tensor, copy in zip(given, copies, strict=True))


def test_results_are_the_same_in_any_company(refiner: MaskRefiner) -> None:
    image, masks = image_of(96, 128), random_rectangles(9, (96, 128), 60)
    together = refiner.refine(image, masks, keep_logits=True)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    options = RefineOptions(num_iters=2, chunk_size=2)
    shuffled = refiner.refine(image, masks[order], options=options, keep_logits=True)
    torch.testing.assert_close(shuffled.low_res_logits, together.low_res_logits[order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shuffled.iou_trace, together.iou_trace[order], atol=1e-5, rtol=1e-4)
    assert shuffled.status.equal(together.status[order])
    assert (shuffled.masks != together.masks[order]).float().mean() < 1e-4
    for i in (0, 5):
        alone = refiner.refine(image, masks[i, None], keep_logits=True)
        torch.testing.assert_close(alone.low_res_logits[0], together.low_res_logits[i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunk_size", [1, 8, 64])
def test_many_masks_are_decoded_a_chunk_at_a_time(
    refiner: MaskRefiner, asked: list[Prompts], encoded: list[Tensor], chunk_size: int
) -> None:
    masks = random_rectangles(300, (96, 128), 40)
    options = RefineOptions(num_iters=1, chunk_size=chunk_size)
    result = refiner.refine(image_of(96, 128), masks, options=options)
    assert max(map(len, asked)) == chunk_size
    assert sum(map(len, asked)) == 300
    assert max(map(len, encoded)) <= chunk_size
    assert sum(map(len, encoded)) < 300, "masks of the whole image share its embedding"
    assert (mask_iou(result.masks, masks) > 0.3).all(), "every result is at its own mask"


def test_the_image_is_encoded_once_for_all_its_masks(refiner: MaskRefiner, encoded: list[Tensor]) -> None:
    masks = rectangles((96, 128), *[(i, i, 60 + i, 50 + i) for i in range(20)])
    refiner.refine(image_of(96, 128), masks, options=RefineOptions(num_iters=3, chunk_size=4))
    assert [len(batch) for batch in encoded] == [1]


def test_an_empty_mask_stays_empty(refiner: MaskRefiner) -> None:
    masks = rectangles((96, 128), (0, 0, 0, 0), (20, 20, 80, 80))
    result = refiner.refine(image_of(96, 128), masks, keep_logits=True)
    assert result.status[0] == RefinementStatus.KEPT_EMPTY
    assert not result.masks[0].any()
    assert result.iou_predictions[0] == 0 and not result.low_res_logits[0].any()
    assert (result.change_trace[0] == 1).all()
    alone = refiner.refine(image_of(96, 128), masks[1:])
    assert alone.masks[0].equal(result.masks[1])


def test_small_masks_are_zoomed_or_kept(refiner: MaskRefiner, asked: list[Prompts], encoded: list[Tensor]) -> None:
    # 4 x 5 of 16 pixels a low-resolution pixel
    masks = rectangles((96, 128), (60, 41, 65, 45))
    kept = refiner.refine(image_of(96, 128), masks, options=RefineOptions(zoom_small=False))
    assert statuses(kept.status) == [RefinementStatus.KEPT_SMALL]
    assert kept.masks.equal(masks) and kept.iou_predictions.tolist() == [0.0]
    assert not asked and not encoded

    zoomed = refiner.refine(image_of(96, 128), masks, options=RefineOptions(zoom_small=True))
    assert statuses(zoomed.status) == [RefinementStatus.REFINED]
    assert zoomed.masks.equal(masks), "10 pixels fill the frame: nothing is lost on the way"
    assert [len(batch) for batch in encoded] == [1]


def test_the_limit_of_small_is_16_low_resolution_pixels(refiner: MaskRefiner, asked: list[Prompts]) -> None:
    options = RefineOptions(num_iters=1, zoom_small=False)
    masks = rectangles((128, 128), (32, 32, 48, 48), (32, 32, 48, 47))
    result = refiner.refine(image_of(128, 128), masks, options=options)
    assert statuses(result.status) == [RefinementStatus.REFINED, RefinementStatus.KEPT_SMALL]


def test_zoom_below_gives_masks_windows_of_their_own(refiner: MaskRefiner, encoded: list[Tensor]) -> None:
    masks = rectangles((96, 128), (20, 20, 50, 50), (0, 0, 100, 90))
    options = RefineOptions(num_iters=1, zoom_below=0.5)
    refiner.refine(image_of(96, 128), masks, options=options)
    assert len(encoded) == 2, "the first in a window of 60 of 128 pixels, the second in the image"


def test_a_window_that_is_the_whole_image_shares_its_embedding(refiner: MaskRefiner, encoded: list[Tensor]) -> None:
    masks = rectangles((40, 40), (18, 18, 22, 21), (5, 5, 35, 35))
    options = RefineOptions(num_iters=1, zoom_context=20.0)
    refiner.refine(image_of(40, 40), masks, options=options)
    assert [len(batch) for batch in encoded] == [1]


@pytest.mark.parametrize("box", [(0, 0, 6, 3), (122, 90, 128, 96), (0, 93, 2, 96), (60, 40, 61, 41), (0, 48, 128, 56)])
def test_windows_hold_their_masks_at_any_border(echo_refiner: MaskRefiner, box: tuple[int, int, int, int]) -> None:
    masks = rectangles((96, 128), box)
    result = echo_refiner.refine(image_of(96, 128), masks, options=RefineOptions(num_iters=1, zoom_below=0.9))
    assert statuses(result.status) == [RefinementStatus.REFINED]
    assert result.masks.equal(masks)


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
    valid, no_cues = torch.ones(3, SIDE, SIDE, dtype=torch.bool), UserCues()
    once, twice = RefineOptions(num_iters=1), RefineOptions(num_iters=2)
    both = refiner._cascade(embeddings, soft_masks, valid, no_cues, twice)
    first = refiner._cascade(embeddings, soft_masks, valid, no_cues, once)
    second = refiner._cascade(embeddings, (first.logits > 0).float(), valid, no_cues, once)
    assert both.logits.equal(second.logits)
    assert both.ious.equal(torch.cat([first.ious, second.ious], 1))
    assert both.changes[:, 1:].equal(second.changes)
    assert not both.logits.equal(first.logits), "a second pass that changes nothing would prove nothing"


def test_refining_twice_is_refining_with_two_passes(refiner: MaskRefiner) -> None:
    # holds exactly where the maps between image and low-resolution frame are identities
    image, masks = (
        image_of(SIDE, SIDE),
        random_rectangles(5, (SIDE, SIDE), 20) | rectangles((SIDE, SIDE), *[(12, 12, 20, 20)] * 5),
    )
    one = RefineOptions(num_iters=1)
    first = refiner.refine(image, masks, options=one)
    again = refiner.refine(image, first.masks, options=one, keep_logits=True)
    twice = refiner.refine(image, masks, options=RefineOptions(num_iters=2), keep_logits=True)
    assert (twice.status == RefinementStatus.REFINED).all()
    assert twice.masks.equal(again.masks)
    assert twice.low_res_logits.equal(again.low_res_logits)
    assert twice.iou_trace.equal(torch.cat([first.iou_trace, again.iou_trace], 1))


def test_user_points_and_boxes_reach_every_pass(refiner: MaskRefiner, asked: list[Prompts]) -> None:
    masks = rectangles((96, 128), (20, 20, 80, 80), (30, 10, 90, 60))
    points = torch.tensor([[[30.0, 40.0], [5.0, 6.0]], [[50.0, 20.0], [0.0, 0.0]]])
    labels = torch.tensor([[1, 0], [1, -1]])
    boxes = torch.tensor([[16.0, 18.0, 85.0, 84.0], [28.0, 8.0, 92.0, 66.0]])
    refiner.refine(image_of(96, 128), masks, points=points, point_labels=labels, boxes=boxes)
    assert len(asked) == 2
    corners = torch.tensor([[0.0, 0.0], [-1.0, -1.0]])
    for prompts in asked:
        # 128 pixels of the image are the 128 of the model input
        torch.testing.assert_close(prompts.point_coords[:, :2], points - 0.5)
        torch.testing.assert_close(prompts.point_coords[:, 2:], boxes.view(2, 2, 2) + corners)
        assert prompts.point_labels.tolist() == [[1, 0, 2, 3], [1, -1, 2, 3]]


def test_points_are_foreground_unless_labelled(refiner: MaskRefiner, asked: list[Prompts]) -> None:
    masks = rectangles((96, 128), (20, 20, 80, 80))
    refiner.refine(image_of(96, 128), masks, points=torch.tensor([[[30, 40], [50, 60], [70, 70]]]))
    assert asked[0].point_labels.tolist() == [[1, 1, 1, 2, 3]]


def test_boxes_of_whole_numbers_are_those_of_floats(refiner: MaskRefiner, asked: list[Prompts]) -> None:
    masks, boxes = rectangles((100, 90), (20, 20, 80, 80)), torch.tensor([[16, 18, 85, 84]])
    for given in (boxes, boxes.float(), boxes.double()):
        refiner.refine(image_of(100, 90), masks, boxes=given, options=RefineOptions(num_iters=1))
    assert asked[0].point_coords.equal(asked[1].point_coords)
    assert asked[0].point_coords.equal(asked[2].point_coords)


def test_cues_far_from_a_small_mask_lie_inside_its_window(refiner: MaskRefiner, asked: list[Prompts]) -> None:
    masks = rectangles((400, 400), (100, 100, 108, 108))
    cues = {
        "points": torch.tensor([[[190.0, 30.0], [390.0, 390.0]]]),
        "point_labels": torch.tensor([[0, int(PointLabel.PADDING)]]),
        "boxes": torch.tensor([[20.0, 60.0, 130.0, 120.0]]),
    }
    refiner.refine(image_of(400, 400), masks, **cues)
    used = asked[0].point_coords[asked[0].point_labels != PointLabel.PADDING]
    assert len(used) == 3
    assert (used > 0).all() and (used < 128).all()
    # 340 pixels: twice the extent of all but the padding point
    scale = 128 / 340
    torch.testing.assert_close(used[2] - used[1], torch.tensor([110.0, 60.0]) * scale - 1)


def test_runs_under_autocast(refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch) -> None:
    # random candidates are so alike that rounding would choose among them
    monkeypatch.setattr(MaskPrediction, "best", lambda self: self.select(torch.tensor([0])))
    image, masks, options = image_of(96, 128), rectangles((96, 128), (20, 10, 90, 70)), RefineOptions(num_iters=1)
    plain = refiner.refine(image, masks, options=options, keep_logits=True)
    # oneDNN gets some bfloat16 convolutions wrong on some CPUs
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", dtype=torch.bfloat16):
        result = refiner.refine(image, masks, options=options, keep_logits=True)
    assert result.low_res_logits.dtype == result.iou_predictions.dtype == torch.float32
    error = (result.low_res_logits - plain.low_res_logits).abs().mean()
    assert 0 < error < 0.05 * plain.low_res_logits.abs().mean()


def test_half_precision_does_not_move_outlines(echo_refiner: MaskRefiner) -> None:
    image, masks = image_of(333, 517), random_rectangles(4, (333, 517), 300)
    plain = echo_refiner.refine(image, masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert echo_refiner.refine(image, masks).masks.equal(plain.masks)


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


def test_how_many_masks_are_decoded_together() -> None:
    assert [RefineOptions().masks_at_once(device) for device in ("cpu", "cuda")] == [2, 32]
    assert [RefineOptions(chunk_size=5).masks_at_once(device) for device in ("cpu", "cuda")] == [5, 5]


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
    assert asked == [3, 3, 1, 1]
    assert loose.change_trace[2].tolist() == pytest.approx([15 / 16, *[14 / 15] * 5])


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
    cascade = refiner._cascade

    def pass_by_pass(embeddings: Tensor, soft_masks: Tensor, *rest: Any) -> Any:
        *others, once = rest
        passes = []
        for _ in range(NUM_PASSES):
            passes.append(cascade(embeddings, soft_masks, *others, replace(once, num_iters=1)))
            soft_masks = ((passes[-1].logits > 0) & others[0]).float()
        traces = {name: torch.cat([getattr(each, name) for each in passes], 1) for name in ("ious", "changes")}
        return replace(passes[-1], **traces)

    monkeypatch.setattr(refiner, "_cascade", pass_by_pass)
    plain = refiner.refine(image, masks, options=options, keep_logits=True)
    assert stopped.masks.equal(plain.masks) and stopped.status.equal(plain.status)
    for name in ("low_res_logits", "iou_trace", "change_trace", "evidence"):
        torch.testing.assert_close(getattr(stopped, name), getattr(plain, name), atol=1e-4, rtol=1e-4, equal_nan=True)


def test_where_memory_runs_out_fewer_masks_are_decoded_at_a_time(
    refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, masks = image_of(96, 128), random_rectangles(9, (96, 128), 60)
    options = RefineOptions(num_iters=2, chunk_size=8)
    plain = refiner.refine(image, masks, options=options)
    decode, tried = refiner.decode, []

    def decode_at_most(size: int) -> Any:
        def limited(image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
            tried.append(len(prompts))
            if len(prompts) > size:
                raise torch.OutOfMemoryError
            return decode(image_embeddings, prompts)

        return limited

    monkeypatch.setattr(refiner, "decode", decode_at_most(2))
    result = refiner.refine(image, masks, options=options)
    assert tried[:3] == [7, 3, 1] and max(tried[3:]) <= 2, "what failed once is not tried again"
    assert (mask_iou(result.masks, plain.masks) > 0.999).all() and result.status.equal(plain.status)
    monkeypatch.setattr(refiner, "decode", decode_at_most(0))
    with pytest.raises(torch.OutOfMemoryError):
        refiner.refine(image, masks)


def test_preprocessing_normalises_then_pads_with_zero(refiner: MaskRefiner) -> None:
    image = torch.full((3, 64, 128), 200, dtype=torch.uint8)
    ready = refiner.preprocess(image, refiner.frame((64, 128)))
    assert ready.shape == (3, 128, 128)
    expected = (200 - refiner.pixel_mean) / refiner.pixel_std
    torch.testing.assert_close(ready[:, :64], expected.expand(3, 64, 128))
    assert (ready[:, 64:] == 0).all()
    floats = refiner.preprocess(image.float(), refiner.frame((64, 128)))
    torch.testing.assert_close(floats, ready)


def test_growing_boxes_get_the_embeddings_of_their_window(refiner: MaskRefiner) -> None:
    refiner.prompter = CoarseMaskPrompter(box_growth=0.5)
    masks = rectangles((96, 128), (60, 41, 65, 45), (20, 20, 80, 80), (40, 10, 44, 14))
    assert len(refiner.refine(image_of(96, 128), masks)) == 3


def windowed(**changes: Any) -> RefineOptions:
    """Windows whose low-resolution pixels are the image's."""
    return RefineOptions(**{"num_iters": 1, "window_scale": SIDE / 128} | changes)


def test_windows_that_change_nothing_leave_no_trace(echo_refiner: MaskRefiner) -> None:
    image, masks = image_of(96, 128), rectangles((96, 128), (12, 20, 100, 88))
    # a low-resolution pixel of the whole image is 4 x 4 of its own, and the mask keeps to that grid
    plain = echo_refiner.refine(image, masks, options=RefineOptions(num_iters=1), keep_logits=True)
    result = echo_refiner.refine(image, masks, options=windowed(), keep_logits=True)
    assert result.masks.equal(plain.masks) and result.low_res_logits.equal(plain.low_res_logits)


def test_windows_lie_along_the_outline(echo_refiner: MaskRefiner, encoded: list[Tensor]) -> None:
    image, masks = image_of(256, 256), rectangles((256, 256), (0, 0, 24, 256))
    echo_refiner.refine(image, masks, options=windowed(chunk_size=4))
    # of fifteen columns of windows, two see the outline
    assert [len(batch) for batch in encoded] == [1, *[4] * 7, 2]


def test_windows_mend_what_the_whole_image_cannot_show(echo_refiner: MaskRefiner) -> None:
    # the pass over the whole image turns one pixel in four into a blur; what windows see, they keep
    masks = rectangles((128, 128), (8, 8, 120, 60))
    masks[0, 60:100, 50:53] = True
    image = image_of(128, 128)
    kept = replace(windowed(), gate="fixed", gate_min_iou=1.0)
    assert echo_refiner.refine(image, masks, options=kept).masks.equal(masks)
    coarse = echo_refiner.refine(image, masks, options=RefineOptions(num_iters=1)).masks
    fine = echo_refiner.refine(image, masks, options=windowed()).masks
    assert mask_iou(fine, coarse).item() > 0.9


def test_a_mask_refined_on_windows_does_not_depend_on_others(refiner: MaskRefiner) -> None:
    image, masks = image_of(160, 200), rectangles((160, 200), (10, 10, 150, 140), (60, 41, 65, 45), (30, 5, 190, 100))
    options = windowed(chunk_size=3, window_scale=0.5)
    together = refiner.refine(image, masks, options=options)
    assert not together.masks.equal(refiner.refine(image, masks, options=replace(options, window_scale=0.0)).masks)
    for i in range(3):
        alone = refiner.refine(image, masks[i, None], options=options)
        assert mask_iou(alone.masks, together.masks[i, None]).item() > 0.999


def test_the_gate_judges_windows(refiner: MaskRefiner) -> None:
    image, masks = image_of(96, 128), rectangles((96, 128), (12, 20, 100, 88))
    refiner.gate = gate_of(-0.1)
    result = refiner.refine(image, masks, options=windowed())
    assert result.masks.equal(masks) and statuses(result.status) == [RefinementStatus.KEPT_REJECTED]


def test_a_small_mask_needs_no_windows(refiner: MaskRefiner, encoded: list[Tensor]) -> None:
    refiner.refine(image_of(96, 128), rectangles((96, 128), (60, 41, 65, 45)), options=windowed(window_scale=1.0))
    assert len(encoded) == 1


IMAGE = torch.zeros(3, 48, 64, dtype=torch.uint8)
MASKS = rectangles((48, 64), (10, 10, 40, 40), (20, 10, 50, 40))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": IMAGE[0]}, r"\(3, H, W\)"),
        ({"image": IMAGE[:1]}, r"\(3, H, W\)"),
        ({"image": IMAGE.permute(1, 2, 0)}, r"\(3, H, W\)"),
        ({"coarse_masks": MASKS.float()}, "masks > 0.5"),
        ({"coarse_masks": MASKS[0]}, r"\(N, 48, 64\)"),
        ({"coarse_masks": MASKS[:, :, 1:]}, "resize the masks"),
        ({"points": torch.zeros(2, 2)}, r"\(2, K, 2\)"),
        ({"points": torch.zeros(1, 4, 2)}, r"\(2, K, 2\)"),
        ({"points": torch.zeros(2, 4, 3)}, r"\(2, K, 2\)"),
        ({"points": torch.zeros(2, 4, 2), "point_labels": torch.ones(2, 3)}, r"\(2, 4\)"),
        ({"points": torch.zeros(2, 1, 2), "point_labels": torch.full((2, 1), 2)}, "1 .on the object."),
        ({"point_labels": torch.ones(2, 3)}, "one label a point"),
        ({"boxes": torch.zeros(4)}, r"\(2, 4\)"),
        ({"boxes": torch.tensor([[4.0, 4.0, 4.0, 9.0]] * 2)}, "empty"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(
    refiner: MaskRefiner, arguments: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        refiner.refine(**{"image": IMAGE, "coarse_masks": MASKS} | arguments)


@pytest.mark.parametrize(
    "options",
    [{"num_iters": 0}, {"chunk_size": 0}, {"zoom_context": 1.0}, {"window_scale": -1.0}, {"stop_overlap": 0.0}],
)
def test_options_that_cannot_work_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RefineOptions(**options)


def test_frozen_parts_take_no_gradient(refiner: MaskRefiner) -> None:
    trained = {name for name, parameter in refiner.image_encoder.named_parameters() if parameter.requires_grad}
    assert trained == {"neck.weight", "neck.bias"}
    assert refiner.frame((48, 64)) == Frame((48, 64), (0, 0, 64, 48), refiner.input_size, refiner.low_res_size)


def gate_of(bias: float) -> RefinementGate:
    """A gate that predicts the same gain for every mask."""
    return RefinementGate(("overlap",), (0.5,), (0.1,), bias, (0.0,), ((0.0,),))


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


def test_a_gate_that_accepts_everything_changes_nothing(refiner: MaskRefiner) -> None:
    image, masks = image_of(96, 128), random_rectangles(5, (96, 128), 60)
    refiner.gate = gate_of(0.1)
    gated, off = (refiner.refine(image, masks, options=RefineOptions(num_iters=2, gate=g)) for g in ("auto", "off"))
    assert gated.masks.equal(off.masks) and gated.status.equal(off.status)
    assert off.predicted_gain.isnan().all() and gated.predicted_gain.isfinite().all()


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


@pytest.mark.parametrize(
    ("options", "message"),
    [({"gate": "on"}, "Unknown gate 'on': expected one of auto"), ({"gate_min_iou": 50.0}, "must be from 0 to 1")],
)
def test_gate_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RefineOptions(**options)
