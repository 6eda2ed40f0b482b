"""What goes in and what comes back: frames, company, chunks, precision, wrong input."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from phoenix_d2.ops.frames import Frame
from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.structures import MaskPrediction, Prompts, RefinementStatus
from tests.refiner.scenes import image_of, random_rectangles, rectangles, statuses


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
    tried.clear()
    refiner.refine(image, masks, options=options)
    assert max(tried) <= 2, "nor in the next image"
    monkeypatch.setattr(refiner, "decode", decode_at_most(0))
    with pytest.raises(torch.OutOfMemoryError):
        refiner.refine(image, masks)


def test_an_empty_mask_stays_empty(refiner: MaskRefiner) -> None:
    masks = rectangles((96, 128), (0, 0, 0, 0), (20, 20, 80, 80))
    result = refiner.refine(image_of(96, 128), masks, keep_logits=True)
    assert result.status[0] == RefinementStatus.KEPT_EMPTY
    assert not result.masks[0].any()
    assert result.iou_predictions[0] == 0 and not result.low_res_logits[0].any()
    assert (result.change_trace[0] == 1).all()
    alone = refiner.refine(image_of(96, 128), masks[1:])
    assert alone.masks[0].equal(result.masks[1])


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


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), torch.bfloat16), ((7, 5), torch.float16)])
def test_a_gpu_works_in_half_precision(
    refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    """In the type that it computes in, unless it is told not to."""
    monkeypatch.setattr(torch, "autocast", lambda _device_type, *, dtype: nullcontext(dtype))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(type(refiner), "device", torch.device("cuda", 0))
    with refiner._autocast() as dtype:
        assert dtype == expected
    refiner.half_precision = False
    with refiner._autocast() as dtype:
        assert dtype is None


def test_encoder_and_decoder_work_in_half_precision_and_nothing_else(
    refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked: list[tuple[str, bool]] = []

    def watch(name: str) -> None:
        plain = getattr(refiner, name)

        def watched(*args: Any) -> Any:
            worked.append((name, torch.is_autocast_enabled("cpu")))
            return plain(*args)

        monkeypatch.setattr(refiner, name, watched)

    for name in ("encode_image", "derive_prompts", "decode"):
        watch(name)
    monkeypatch.setattr(refiner, "_autocast", lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    options = RefineOptions(num_iters=1)
    result = refiner.refine(image_of(96, 128), rectangles((96, 128), (20, 10, 90, 70)), options=options)
    assert worked == [("encode_image", True), ("derive_prompts", False), ("decode", True)]
    assert result.iou_predictions.dtype == result.evidence.dtype == torch.float32


def test_half_precision_does_not_move_outlines(echo_refiner: MaskRefiner) -> None:
    image, masks = image_of(333, 517), random_rectangles(4, (333, 517), 300)
    plain = echo_refiner.refine(image, masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert echo_refiner.refine(image, masks).masks.equal(plain.masks)


def test_preprocessing_normalises_then_pads_with_zero(refiner: MaskRefiner) -> None:
    image = torch.full((3, 64, 128), 200, dtype=torch.uint8)
    ready = refiner.preprocess(image, refiner.frame((64, 128)))
    assert ready.shape == (3, 128, 128)
    expected = (200 - refiner.pixel_mean) / refiner.pixel_std
    torch.testing.assert_close(ready[:, :64], expected.expand(3, 64, 128))
    assert (ready[:, 64:] == 0).all()
    floats = refiner.preprocess(image.float(), refiner.frame((64, 128)))
    torch.testing.assert_close(floats, ready)


def test_frozen_parts_take_no_gradient(refiner: MaskRefiner) -> None:
    trained = {name for name, parameter in refiner.image_encoder.named_parameters() if parameter.requires_grad}
    assert trained == {"neck.weight", "neck.bias"}
    assert refiner.frame((48, 64)) == Frame((48, 64), (0, 0, 64, 48), refiner.input_size, refiner.low_res_size)


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
        ({"points": torch.full((2, 1, 2), torch.nan)}, r"Points \[\[nan, nan\], \[nan, nan\]\] are not finite"),
        ({"boxes": torch.tensor([[0, 0, 9.0, torch.inf]] * 2)}, r"Boxes .*inf.* are not finite"),
        ({"point_labels": torch.ones(2, 3)}, "one label a point"),
        ({"boxes": torch.zeros(4)}, r"\(2, 4\)"),
        ({"boxes": torch.tensor([[4.0, 4.0, 4.0, 9.0]] * 2)}, "empty"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(
    refiner: MaskRefiner, encoded: list[Tensor], arguments: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        refiner.refine(**{"image": IMAGE, "coarse_masks": MASKS} | arguments)
    assert not encoded, "before any work is done"


def test_a_compiled_network_gives_the_same_answers(refiner: MaskRefiner) -> None:
    image, masks = image_of(96, 128), rectangles((96, 128), (20, 10, 90, 70))
    refiner.options = RefineOptions(num_iters=1)
    plain, names = refiner.refine(image, masks, keep_logits=True), list(refiner.state_dict())
    # traced as for any backend, but run as it is: to build kernels takes minutes
    refiner.compile_network(backend="eager")
    compiled = refiner.refine(image, masks, keep_logits=True)
    traced = torch._dynamo.utils.counters["stats"]["calls_captured"]
    assert traced > 0 and list(refiner.state_dict()) == names
    torch.testing.assert_close(compiled.low_res_logits, plain.low_res_logits, atol=1e-4, rtol=1e-4)
