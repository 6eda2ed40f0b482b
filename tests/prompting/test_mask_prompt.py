"""Codings of the mask prompt."""

from __future__ import annotations

import torch

from phoenix_d2.ops.masks import masks_to_boxes
from phoenix_d2.prompting.depths import euclidean_depths
from phoenix_d2.prompting.mask_prompt import binary_prompt, gaussian_prompt, logit_prompt


def rectangle() -> torch.Tensor:
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[0, 5:16, 4:15] = True
    return mask


def test_logit_prompt_spans_its_scale_and_is_zero_at_half() -> None:
    soft = torch.tensor([[[0.0, 0.5], [0.75, 1.0]]])
    assert logit_prompt(soft, scale=8).tolist() == [[[[-8, 0], [4, 8]]]]
    assert soft.tolist() == [[[0, 0.5], [0.75, 1]]], "the argument is not written to"


def test_binary_prompt_is_the_mask() -> None:
    prompt = binary_prompt(rectangle())
    assert prompt.shape == (1, 1, 32, 32) and prompt.dtype == torch.float32
    assert torch.equal(prompt[:, 0] > 0, rectangle()) and prompt.unique().tolist() == [0, 1]


def test_gaussian_prompt_peaks_at_the_deepest_point_and_is_sure_of_the_background() -> None:
    mask = rectangle()
    prompt = gaussian_prompt(mask, euclidean_depths(mask, masks_to_boxes(mask)).foreground)
    assert prompt.shape == (1, 1, 32, 32)
    assert (prompt[:, 0][~mask] == -30).all()
    assert prompt.argmax() == 10 * 32 + 9 and prompt.max() == 30
    # depth 1 at the rim, 6 in the middle, area 121
    torch.testing.assert_close(prompt[0, 0, 5, 4], 30 * torch.exp(torch.tensor(-25 * 4 / 121)))


def test_gaussian_amplitude_may_differ_from_mask_to_mask() -> None:
    masks = rectangle().repeat(2, 1, 1)
    depths = euclidean_depths(masks, masks_to_boxes(masks)).foreground
    prompt = gaussian_prompt(masks, depths, amplitude=torch.tensor([30.0, 1.0]))
    torch.testing.assert_close(prompt[0], 30 * prompt[1])


def test_gaussian_prompt_of_a_pixel_and_of_nothing_is_finite() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 2, 2] = True
    prompt = gaussian_prompt(masks, euclidean_depths(masks, masks_to_boxes(masks)).foreground)
    assert prompt[0, 0, 2, 2] == 30 and (prompt[1] == -30).all()
