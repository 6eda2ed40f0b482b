"""Guidance masks, and the draw of guides."""

from __future__ import annotations

import torch

from phoenix_d2.perturbation.guidance import Guide, draw_guides, guidance_masks


def test_guidance_of_each_guide() -> None:
    target = torch.tensor([[True, False], [False, False]])
    masks = guidance_masks(target.expand(3, 2, 2), torch.tensor([Guide.EXPANSION, Guide.CONTRACTION, Guide.INVERSION]))
    assert masks.dtype == torch.float32
    assert torch.equal(masks[0], torch.ones(2, 2))
    assert torch.equal(masks[1], torch.zeros(2, 2))
    assert torch.equal(masks[2], (~target).float())


def test_draws_are_among_the_choices_uniform_and_seeded() -> None:
    choices = [Guide.EXPANSION, Guide.INVERSION]
    draws = [
        draw_guides(2000, choices, generator=torch.Generator().manual_seed(3), device=torch.device("cpu"))
        for _ in range(2)
    ]
    assert torch.equal(*draws)
    assert set(draws[0].tolist()) == set(choices)
    assert abs((draws[0] == Guide.INVERSION).float().mean().item() - 0.5) < 0.05
