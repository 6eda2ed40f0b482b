"""What colours say of a mask: their odds, the edges that masks are drawn to, and the refiner that asks them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from phoenix_d2.baselines.samrefiner import training_free
from phoenix_d2.colors import WindowColors
from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.structures import MaskPrediction, Prompts
from tests.refiner.scenes import SIDE, echo, image_of, rectangles

RED, BLUE = torch.tensor([0.8, 0.2, 0.2]), torch.tensor([0.2, 0.3, 0.8])


def painted(masks: Tensor) -> Tensor:
    """(N, s, s) masks -> (N, 3, s, s), red where they are and blue elsewhere, with a little noise."""
    noise = 0.002 * torch.randn(len(masks), 3, *masks.shape[1:], generator=torch.Generator().manual_seed(0))
    return torch.where(masks[:, None], RED[:, None, None], BLUE[:, None, None]) + noise


def everywhere(masks: Tensor) -> Tensor:
    return torch.ones_like(masks, dtype=torch.bool)


def random_windows(n: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, valid ones, and logits."""
    generator = torch.Generator().manual_seed(1)
    valid = torch.ones(n, side, side, dtype=torch.bool)
    valid[:, :, side - 2 :] = False
    return torch.rand(n, 3, side, side, generator=generator), valid, torch.randn(n, side, side, generator=generator)


def test_colors_of_the_object_speak_for_it() -> None:
    target = rectangles((24, 24), (4, 4, 20, 20))
    guess = rectangles((24, 24), (8, 8, 24, 24))
    valid = everywhere(target)
    valid[:, :2] = False
    odds = WindowColors.of(painted(target), valid).log_odds(guess.float())
    assert (odds[target] > 0.2).all() and (odds[~target & valid] < -0.2).all()
    assert (odds[~valid] == 0).all()


def test_a_color_as_frequent_on_the_object_as_off_it_says_nothing() -> None:
    guess = rectangles((16, 16), (0, 0, 16, 4))
    plain = torch.full((1, 3, 16, 16), 0.4)
    odds = WindowColors.of(plain, everywhere(guess)).log_odds(guess.float())
    assert odds.abs().max() < 1e-4


def test_a_coarse_mask_is_cleaned_by_colors() -> None:
    target = rectangles((32, 32), (4, 4, 20, 20))
    specks = torch.zeros_like(target)
    specks[:, 1::4, 1::4] = True
    coarse = target ^ specks
    colors = WindowColors.of(painted(target), everywhere(target))
    assert colors.clean(coarse.float(), 1.0).equal(target.float())


def test_of_a_mask_something_is_left() -> None:
    """A lone pixel is of the colour of all others: the filter would take it away."""
    speck = rectangles((16, 16), (5, 5, 6, 6)).float()
    colors = WindowColors.of(torch.full((1, 3, 16, 16), 0.4), everywhere(speck))
    assert (colors.correct(2 * speck - 1, 1.0) <= 0).all()
    assert colors.clean(speck, 1.0).equal(speck)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_certainty_about_all_pixels_is_finite(probability: float) -> None:
    pixels, valid, _ = random_windows(1, 12)
    colors = WindowColors.of(pixels, valid)
    assert colors.log_odds(torch.full((1, 12, 12), probability)).isfinite().all()
    assert colors.correct(torch.full((1, 12, 12), 200 * probability - 100), 1.0).isfinite().all()


def test_the_filter_is_that_of_its_paper() -> None:
    """He et al. 2010, Eqs. (14) to (16), window by window."""
    pixels, valid, logits = random_windows(1, 9)
    values = logits.sigmoid()
    expected = guided_filter(pixels[0].numpy(), values[0].numpy(), valid[0].numpy(), epsilon=1e-3)
    filtered = WindowColors.of(pixels, valid)._filter(values)[0]
    assert filtered[valid[0]].numpy() == pytest.approx(expected[valid[0]], abs=1e-4)


def guided_filter(
    guide: NDArray[np.float32], values: NDArray[np.float32], valid: NDArray[np.bool_], *, epsilon: float
) -> NDArray[np.float64]:
    """Windows of 3 x 3 pixels, of which those that are not valid are left out."""
    side = len(values)
    windows = {
        (y, x): [
            (v, u)
            for v in range(max(y - 1, 0), min(y + 2, side))
            for u in range(max(x - 1, 0), min(x + 2, side))
            if valid[v, u]
        ]
        for y, x in zip(*valid.nonzero(), strict=True)
    }
    lines = {}
    for centre, window in windows.items():
        colors = np.array([guide[:, v, u] for v, u in window], np.float64)
        targets = np.array([values[v, u] for v, u in window], np.float64)
        covariance = np.cov(colors.T, bias=True) + epsilon * np.eye(3)
        slope = np.linalg.solve(covariance, (colors * targets[:, None]).mean(0) - colors.mean(0) * targets.mean())
        lines[centre] = slope, targets.mean() - slope @ colors.mean(0)
    filtered = np.zeros((side, side))
    for (y, x), window in windows.items():
        slopes, offsets = zip(*(lines[pixel] for pixel in window), strict=True)
        filtered[y, x] = np.mean(slopes, 0) @ guide[:, y, x] + np.mean(offsets)
    return filtered


def test_masks_do_not_depend_on_one_another() -> None:
    pixels, valid, logits = random_windows(3, 16)
    windows = WindowColors.of(pixels, valid)
    together = windows.correct(logits, 0.5)
    for i in range(3):
        row = torch.tensor([i])
        assert torch.allclose(windows[row].correct(logits[row], 0.5), together[row], atol=1e-5)
    shared = WindowColors.of(pixels[:1], valid[:1])
    assert len(shared) == 1
    one_each = WindowColors.of(pixels[:1].expand(3, -1, -1, -1), valid[:1].expand(3, -1, -1))
    assert torch.allclose(shared.correct(logits, 0.5), one_each.correct(logits, 0.5), atol=1e-5)


def unsure(image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
    """The mask that it is asked with, by little."""
    answer = echo(image_embeddings, prompts)
    return replace(answer, low_res_logits=answer.low_res_logits.sign())


def test_an_unsure_decoder_is_corrected(refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refiner, "decode", unsure)
    target, coarse = rectangles((SIDE, SIDE), (8, 8, 24, 24)), rectangles((SIDE, SIDE), (6, 10, 22, 26))
    image = (255 * painted(target)[0].clamp(0, 1)).to(torch.uint8)
    asked, unasked = (
        refiner.refine(image, coarse, options=RefineOptions(num_iters=1, color_weight=weight)).masks
        for weight in (3.0, 0.0)
    )
    assert unasked.equal(coarse)
    assert mask_iou(coarse, target) < 0.65 and mask_iou(asked, target) > 0.85


def test_the_first_pass_is_asked_with_a_cleaned_mask(refiner: MaskRefiner, asked: list[Prompts]) -> None:
    target = rectangles((SIDE, SIDE), (8, 8, 24, 24))
    coarse = target.clone()
    coarse[:, 2, 2] = True
    image = (255 * painted(target)[0].clamp(0, 1)).to(torch.uint8)
    for weight in (0.0, 1.0):
        refiner.refine(image, coarse, options=RefineOptions(num_iters=1, color_weight=weight))
    plain, cleaned = (prompts.mask_logits[0, 0] > 0 for prompts in asked if prompts.mask_logits is not None)
    assert plain.equal(coarse[0]) and cleaned.equal(target[0])


def test_colors_are_sorted_once_a_window_and_only_when_asked(
    refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[int] = []
    sort = WindowColors.of
    monkeypatch.setattr(WindowColors, "of", lambda pixels, valid: windows.append(len(pixels)) or sort(pixels, valid))
    image, masks = image_of(64, 64), rectangles((64, 64), (5, 5, 60, 60), (10, 4, 58, 50), (8, 8, 16, 16))
    options = RefineOptions(num_iters=3, zoom_below=0.5, chunk_size=1)
    refiner.refine(image, masks, options=options)
    assert not windows
    refiner.refine(image, masks, options=replace(options, color_weight=0.5))
    assert windows == [1, 1]


def test_padding_has_no_color(refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 81 rows of an image that is 128 columns wide, the last shares its low-resolution pixels with padding."""
    seen: list[WindowColors] = []
    sort = WindowColors.of
    monkeypatch.setattr(WindowColors, "of", lambda pixels, valid: seen.append(sort(pixels, valid)) or seen[-1])
    image = torch.full((3, 81, 128), 250, dtype=torch.uint8)
    masks = rectangles((81, 128), (20, 20, 100, 70))
    refiner.refine(image, masks, options=RefineOptions(num_iters=1, color_weight=0.5))
    (colors,) = seen
    assert colors.valid[0, :, 0].sum() == 21
    assert colors.pixels[:, :, :21].min() == pytest.approx(250 / 255, abs=1e-3)


def test_samrefiner_asks_no_colors(refiner: MaskRefiner) -> None:
    refiner.options = replace(refiner.options, color_weight=0.5)
    assert training_free(PhoenixRefiner(refiner)).options.color_weight == 0
