"""Dropping of visual prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from phoenix_d2.prompting.dropping import drop_visual_prompts
from phoenix_d2.structures import PointLabel, Prompts


def prompts_of(count: int) -> Prompts:
    return Prompts(torch.rand(count, 4, 2), torch.tensor([[1, 0, 2, 3]]).repeat(count, 1), torch.rand(count, 1, 2, 2))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_all_points_of_a_mask_go_together_and_its_mask_prompt_stays() -> None:
    prompts = prompts_of(200)
    result = drop_visual_prompts(prompts, probability=0.5, generator=generator())
    dropped = (result.point_labels == PointLabel.PADDING).all(dim=1)
    assert 0 < dropped.sum() < 200
    assert torch.equal(result.point_labels[~dropped], prompts.point_labels[~dropped])
    assert result.mask_logits is prompts.mask_logits


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.3, 540, 660), (1.0, 2000, 2000)])
def test_share_that_is_dropped(probability: float, low: int, high: int) -> None:
    result = drop_visual_prompts(prompts_of(2000), probability=probability, generator=generator())
    assert low <= (result.point_labels[:, 0] == PointLabel.PADDING).sum() <= high


def test_generator_decides() -> None:
    first, again, other = (
        drop_visual_prompts(prompts_of(50), generator=generator(seed)).point_labels for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_probability_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.5"):
        drop_visual_prompts(prompts_of(1), probability=1.5, generator=generator())


def test_nothing_is_dropped_that_is_the_only_prompt() -> None:
    with pytest.raises(ValueError, match="mask prompts"):
        drop_visual_prompts(replace(prompts_of(1), mask_logits=None), generator=generator())
