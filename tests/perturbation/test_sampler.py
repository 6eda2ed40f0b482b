"""Which noise a mask gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.perturbation.sampler import NoiseSampler
from phoenix_d2.structures import PerturbationOutcome

SIDE = 32
N = 100


def signed_distance(radius: float) -> Tensor:
    axis = torch.arange(SIDE) + 0.5 - SIDE / 2
    return radius - (axis[:, None].square() + axis.square()).sqrt()


TARGETS = (signed_distance(9) > 0).expand(N, SIDE, SIDE)


def sampler(**overrides: Any) -> NoiseSampler:
    return NoiseSampler(**{"num_embeddings": 2, "embed_dim": 4, "init_std": 0.0} | overrides)


def decode_disc(embeddings: Tensor, active: Tensor) -> Tensor:
    return signed_distance(9) + 50 * embeddings.mean(dim=(1, 2))[:, None, None]


def decode_nothing(embeddings: Tensor, active: Tensor) -> Tensor:
    return embeddings.mean(dim=(1, 2))[:, None, None].expand(-1, SIDE, SIDE) - 1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def share(outcome: Tensor, value: PerturbationOutcome) -> float:
    return (outcome == value).float().mean().item()


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_mixes_by_probability(probability: float) -> None:
    result = sampler(morphology_prob=probability)(decode_disc, TARGETS, None, generator=generator())
    assert share(result.outcome, PerturbationOutcome.MORPHOLOGICAL) == pytest.approx(
        probability, abs=0.1 if 0 < probability < 1 else 0
    )
    torch.testing.assert_close(result.iou, mask_iou(result.masks, TARGETS))


def test_only_adversarial_masks_are_decoded() -> None:
    seen: set[int] = set()

    def decode(embeddings: Tensor, active: Tensor) -> Tensor:
        seen.update(active.tolist())
        return decode_disc(embeddings, active)

    result = sampler(morphology_prob=0.5)(decode, TARGETS, None, generator=generator())
    adversarial = (result.outcome != PerturbationOutcome.MORPHOLOGICAL).nonzero()[:, 0]
    assert 0 < len(adversarial) < N
    assert seen == set(adversarial.tolist())


def test_a_decoder_that_misses_the_target_falls_back() -> None:
    result = sampler(iou_range=(0.4, 0.6))(decode_nothing, TARGETS, None, generator=generator())
    assert share(result.outcome, PerturbationOutcome.MORPHOLOGICAL) == 1
    assert ((result.iou >= 0.4) & (result.iou < 0.75)).float().mean() > 0.95


def test_a_start_below_but_not_hopeless_is_kept() -> None:
    def decode(embeddings: Tensor, active: Tensor) -> Tensor:
        return signed_distance(4) + 0 * embeddings.mean(dim=(1, 2))[:, None, None]

    kept = sampler(iou_range=(0.5, 0.9))(decode, TARGETS[:4], None, generator=generator())
    assert share(kept.outcome, PerturbationOutcome.STARTED_BELOW) == 1
    replaced = sampler(iou_range=(0.5, 0.9), min_iou=0.4)(decode, TARGETS[:4], None, generator=generator())
    assert share(replaced.outcome, PerturbationOutcome.MORPHOLOGICAL) == 1
    assert (replaced.iou > kept.iou).all()


def test_thresholds_span_the_range() -> None:
    result = sampler(morphology_prob=1.0, iou_range=(0.3, 0.9))(None, TARGETS, None, generator=generator())
    assert result.iou.min() < 0.4 and result.iou.max() > 0.85
    assert result.iou.mean().item() == pytest.approx(0.63, abs=0.06)


def test_guides_are_obeyed() -> None:
    def areas(guide: str) -> Tensor:
        result = sampler(guides=(guide,))(decode_disc, TARGETS[:8], None, generator=generator())
        return result.masks.flatten(1).sum(1)

    target_area = TARGETS[0].sum()
    assert (areas("expansion") > target_area).all()
    assert (areas("contraction") < target_area).all()


def test_model_masks_are_used_as_they_are() -> None:
    model_masks = torch.zeros_like(TARGETS)
    model_masks[::2] = signed_distance(7) > 0
    result = sampler()(decode_disc, TARGETS, None, model_masks=model_masks, generator=generator())
    assert torch.equal(result.masks[::2], model_masks[::2])
    assert share(result.outcome[::2], PerturbationOutcome.FROM_MODEL) == 1
    assert share(result.outcome[1::2], PerturbationOutcome.FROM_MODEL) == 0
    torch.testing.assert_close(result.iou, mask_iou(result.masks, TARGETS))


def test_seeded() -> None:
    draw = [sampler(morphology_prob=0.5)(decode_disc, TARGETS, None, generator=generator(s)) for s in (0, 0, 1)]
    assert torch.equal(draw[0].masks, draw[1].masks) and torch.equal(draw[0].outcome, draw[1].outcome)
    assert not torch.equal(draw[0].outcome, draw[2].outcome)


def test_no_noise_in_the_padding() -> None:
    valid = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    valid[:, : SIDE // 2 + 2] = True
    targets = TARGETS & valid
    result = sampler(morphology_prob=0.5)(decode_disc, targets, valid, generator=generator())
    assert not (result.masks & ~valid).any()
    assert result.masks.flatten(1).any(1).all()
    torch.testing.assert_close(result.iou, mask_iou(result.masks, targets, valid))


def test_no_masks() -> None:
    result = sampler(morphology_prob=0.5)(decode_disc, TARGETS[:0], None, generator=generator())
    assert result.masks.shape == (0, SIDE, SIDE)


def test_no_decoder_means_no_adversarial_noise() -> None:
    with pytest.raises(ValueError, match=r"decode is None, but 0\.1 of the noise is adversarial"):
        sampler(morphology_prob=0.6, shapeless_prob=0.3)(None, TARGETS, None, generator=generator())
    result = sampler(morphology_prob=0.6, shapeless_prob=0.4)(None, TARGETS, None, generator=generator())
    kinds = {PerturbationOutcome.MORPHOLOGICAL, PerturbationOutcome.SHAPELESS}
    assert set(result.outcome.tolist()) == set(map(int, kinds))
    torch.testing.assert_close(result.iou, mask_iou(result.masks, TARGETS))


def test_shapeless_share() -> None:
    result = sampler(shapeless_prob=0.5)(decode_disc, TARGETS, None, generator=generator())
    assert 0.3 < share(result.outcome, PerturbationOutcome.SHAPELESS) < 0.7
    assert (result.num_steps[result.outcome == PerturbationOutcome.SHAPELESS] == 0).all()


def test_mild_noise_leaves_some_masks_alone_and_none_far_off() -> None:
    result = sampler(degradation_prob=1.0)(None, TARGETS, None, generator=generator())
    assert (result.outcome == PerturbationOutcome.DEGRADED).all()
    unchanged = (result.masks == TARGETS).flatten(1).all(1).float().mean()
    assert 0.2 < unchanged < 0.95
    assert result.iou.min() > 0.6 and result.iou.mean() > 0.9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"iou_range": (0.0, 0.9)}, "iou_range"),
        ({"iou_range": (0.9, 0.3)}, "iou_range"),
        ({"morphology_prob": 1.2}, "morphology_prob"),
        ({"shapeless_prob": 0.6, "degradation_prob": 0.6}, "add up to at most 1"),
        ({"guides": ("growth",)}, "expansion, contraction, inversion"),
        ({"guides": ()}, "guides"),
        ({"criterion": "iou"}, "dice, l1"),
    ],
)
def test_bad_configuration(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSampler(**overrides)
