"""The attack on decoders whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.perturbation.adversarial import perturb_masks
from phoenix_d2.perturbation.guidance import Guide, guidance_masks
from phoenix_d2.structures import PerturbationOutcome, PerturbationResult

SIDE, NUM_EMBEDDINGS, EMBED_DIM = 48, 4, 8
STEP = 0.01
RADII = torch.tensor([14.0, 12.0, 10.0])


def signed_distance(radii: Tensor) -> Tensor:
    """Pixels to the rim of discs in the middle of the frame, positive inside."""
    axis = torch.arange(SIDE) + 0.5 - SIDE / 2
    return radii[:, None, None] - (axis[:, None].square() + axis.square()).sqrt()


class DiscDecoder(nn.Module):
    """Discs that grow with the mean of the embeddings; one step of `STEP` moves the rim by `pixels_per_step`."""

    def __init__(self, radii: Tensor, *, pixels_per_step: float = 1.0) -> None:
        super().__init__()
        self.distance = nn.Parameter(signed_distance(radii))
        self.gain = pixels_per_step / STEP
        self.batches: list[list[int]] = []
        self.embeddings: list[Tensor] = []

    def forward(self, embeddings: Tensor, active: Tensor) -> Tensor:
        self.batches.append(active.tolist())
        self.embeddings.append(embeddings.detach().clone())
        return self.distance[active] + self.gain * embeddings.mean(dim=(1, 2))[:, None, None]


def attack(decode: Callable[[Tensor, Tensor], Tensor], target_masks: Tensor, **overrides: Any) -> PerturbationResult:
    """Attack from zero embeddings, by expansion, to a band of 0.5 to 0.6, unless told otherwise."""
    n = len(target_masks)
    guide = overrides.pop("guide", Guide.EXPANSION)
    threshold = overrides.pop("iou_threshold", 0.5)
    arguments: dict[str, Any] = {
        "iou_thresholds": torch.full((n,), threshold, device=target_masks.device),
        "valid": None,
        "generator": torch.Generator().manual_seed(0),
        "num_embeddings": NUM_EMBEDDINGS,
        "embed_dim": EMBED_DIM,
        "init_std": 0.0,
        "step_size": STEP,
        "iou_margin": 0.1,
    }
    guidance = guidance_masks(target_masks, torch.full((n,), int(guide), device=target_masks.device))
    return perturb_masks(decode, target_masks, guidance, **arguments | overrides)


def all_are(result: PerturbationResult, outcome: PerturbationOutcome) -> bool:
    return bool((result.outcome == outcome).all())


@pytest.fixture
def target_masks() -> Tensor:
    return signed_distance(RADII) > 0


@pytest.mark.parametrize("guide", [Guide.EXPANSION, Guide.CONTRACTION])
@pytest.mark.parametrize("criterion", ["dice", "l1", "mse", "bce", "focal"])
def test_lands_in_the_band(target_masks: Tensor, guide: Guide, criterion: str, device: str) -> None:
    target_masks = target_masks.to(device)
    result = attack(DiscDecoder(RADII).to(device), target_masks, guide=guide, criterion=criterion)
    assert all_are(result, PerturbationOutcome.IN_BAND)
    assert ((result.iou >= 0.5) & (result.iou < 0.6)).all()
    torch.testing.assert_close(result.iou, mask_iou(result.masks, target_masks))


def test_expansion_grows_and_contraction_shrinks(target_masks: Tensor) -> None:
    grown = attack(DiscDecoder(RADII), target_masks, guide=Guide.EXPANSION).masks
    shrunk = attack(DiscDecoder(RADII), target_masks, guide=Guide.CONTRACTION).masks
    assert torch.equal(grown & target_masks, target_masks) and (grown & ~target_masks).any()
    assert torch.equal(shrunk & target_masks, shrunk) and (target_masks & ~shrunk).any()


def test_inversion_errs_both_ways(target_masks: Tensor) -> None:
    left = (torch.arange(SIDE) < SIDE / 2).float()

    def decode(embeddings: Tensor, active: Tensor) -> Tensor:
        move = 100 * embeddings.mean(dim=1)[:, :2]
        sides = left * move[:, :1] + (1 - left) * move[:, 1:]
        return signed_distance(RADII)[active] + sides[:, None, :]

    # the left half starts too large and the right half too small, so that inversion drives them apart
    start = torch.zeros(3, NUM_EMBEDDINGS, EMBED_DIM)
    start[..., 0], start[..., 1] = 0.02, -0.02
    result = attack(
        lambda embeddings, active: decode(embeddings + start[active], active),
        target_masks,
        guide=Guide.INVERSION,
        iou_threshold=0.4,
        criterion="mse",
    )
    assert (result.masks & ~target_masks).flatten(1).any(1).all()
    assert (target_masks & ~result.masks).flatten(1).any(1).all()
    assert all_are(result, PerturbationOutcome.IN_BAND)


def test_a_lower_threshold_gives_a_lower_iou(target_masks: Tensor) -> None:
    iou = [attack(DiscDecoder(RADII), target_masks, iou_threshold=t).iou for t in (0.4, 0.55, 0.7, 0.85)]
    assert all((low < high).all() for low, high in pairwise(iou))


def test_each_mask_has_its_own_threshold(target_masks: Tensor) -> None:
    thresholds = torch.tensor([0.8, 0.6, 0.4])
    result = attack(DiscDecoder(RADII), target_masks, iou_thresholds=thresholds)
    assert ((result.iou >= thresholds) & (result.iou < thresholds + 0.1)).all()


def test_seeded_runs_repeat_and_seeds_matter(target_masks: Tensor) -> None:
    decoders = [DiscDecoder(RADII) for _ in range(3)]
    seeds = [1, 1, 2]
    results = [
        attack(decoder, target_masks, init_std=0.1, generator=torch.Generator().manual_seed(seed))
        for decoder, seed in zip(decoders, seeds, strict=True)
    ]
    assert torch.equal(results[0].masks, results[1].masks)
    assert torch.equal(decoders[0].embeddings[0], decoders[1].embeddings[0])
    assert not torch.equal(decoders[0].embeddings[0], decoders[2].embeddings[0])
    assert decoders[0].embeddings[0].std().item() == pytest.approx(0.1, rel=0.3)


def test_batched_equals_one_by_one(target_masks: Tensor) -> None:
    decoder = DiscDecoder(RADII)
    thresholds = torch.tensor([0.8, 0.6, 0.4])
    together = attack(decoder, target_masks, iou_thresholds=thresholds)
    for i in range(3):
        alone = attack(DiscDecoder(RADII[i : i + 1]), target_masks[i : i + 1], iou_thresholds=thresholds[i : i + 1])
        assert torch.equal(alone.masks[0], together.masks[i])
        assert alone.num_steps[0] == together.num_steps[i]
        assert alone.outcome[0] == together.outcome[i]


def test_finished_masks_leave_the_batch(target_masks: Tensor) -> None:
    decoder = DiscDecoder(RADII)
    result = attack(decoder, target_masks, iou_thresholds=torch.tensor([0.8, 0.6, 0.4]))
    assert sum(len(batch) for batch in decoder.batches) == result.num_steps.sum() + 3
    assert len(decoder.batches[0]) == 3 and len(decoder.batches[-1]) < 3


def test_the_decoder_stays_untouched(target_masks: Tensor) -> None:
    decoder = DiscDecoder(RADII)
    before = decoder.distance.detach().clone()
    with torch.no_grad():
        result = attack(decoder, target_masks)
    assert all_are(result, PerturbationOutcome.IN_BAND)
    assert torch.equal(decoder.distance, before)
    assert decoder.distance.grad is None


def test_a_gradient_of_the_caller_stays(target_masks: Tensor) -> None:
    decoder = DiscDecoder(RADII)
    decoder.distance.grad = torch.ones_like(decoder.distance)
    attack(decoder, target_masks)
    assert torch.equal(decoder.distance.grad, torch.ones_like(decoder.distance))


def test_in_the_band_from_the_start(target_masks: Tensor) -> None:
    decoder = DiscDecoder(RADII * 0.74)
    result = attack(decoder, target_masks)
    assert all_are(result, PerturbationOutcome.IN_BAND)
    assert (result.num_steps == 0).all() and len(decoder.batches) == 1


def test_started_below(target_masks: Tensor) -> None:
    decoder = DiscDecoder(RADII / 2)
    result = attack(decoder, target_masks)
    assert all_are(result, PerturbationOutcome.STARTED_BELOW)
    assert torch.equal(result.masks, signed_distance(RADII / 2) > 0)
    assert (result.num_steps == 0).all() and len(decoder.batches) == 1


def test_exhausted_above_spends_the_decodes_of_one_round(target_masks: Tensor) -> None:
    decoder = DiscDecoder(RADII, pixels_per_step=0.05)
    result = attack(decoder, target_masks, max_steps=6)
    assert all_are(result, PerturbationOutcome.EXHAUSTED_ABOVE)
    assert len(decoder.batches) == 6
    assert (result.num_steps == 5).all()
    assert (result.iou >= 0.6).all()


def test_exhausted_below_spends_the_decays(target_masks: Tensor) -> None:
    decoder = DiscDecoder(RADII, pixels_per_step=1e6)
    result = attack(decoder, target_masks, max_decays=2)
    assert all_are(result, PerturbationOutcome.EXHAUSTED_BELOW)
    assert (result.num_steps == 3).all()
    assert (result.iou < 0.5).all()
    sizes = [(step - decoder.embeddings[0]).mean() for step in decoder.embeddings[1:]]
    torch.testing.assert_close(torch.stack(sizes), STEP * torch.tensor([1.0, 0.1, 0.01]))


def test_an_overshoot_goes_back_before_the_step_and_takes_a_tenth(target_masks: Tensor) -> None:
    decoder = DiscDecoder(RADII[:1], pixels_per_step=4.0)
    result = attack(decoder, target_masks[:1], iou_threshold=0.5, iou_margin=0.08)
    # radius 14: 14 -> 18 (IoU 0.60) -> 22 (0.40, overshoot) -> 18.4 (0.58 is too high still, on to) 18.8
    walked = torch.stack([embeddings.mean() for embeddings in decoder.embeddings]) / STEP
    torch.testing.assert_close(walked[:4], torch.tensor([0.0, 1.0, 2.0, 1.1]))
    torch.testing.assert_close(walked[4:], torch.arange(2, len(walked) - 2) / 10 + 1)
    assert all_are(result, PerturbationOutcome.IN_BAND)


def test_a_decay_starts_a_new_round() -> None:
    """Two steps of the first round, an overshoot, then as many decodes as a round has, the spared one among them."""
    calls: list[float] = []

    def decode(embeddings: Tensor, active: Tensor) -> Tensor:
        move = embeddings.mean() / STEP
        calls.append(round(move.item(), 3))
        return signed_distance(RADII[:1]) + move * (100.0 if move > 1.5 else 0.01)

    result = attack(decode, signed_distance(RADII[:1]) > 0, max_steps=4)
    assert calls == [0.0, 1.0, 2.0, 1.1, 1.2, 1.3]
    assert all_are(result, PerturbationOutcome.EXHAUSTED_ABOVE)
    assert result.num_steps.tolist() == [5]


def test_padding_neither_counts_nor_fills(target_masks: Tensor) -> None:
    valid = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    valid[:, :, : SIDE // 2 + 4] = True
    targets = target_masks & valid
    result = attack(DiscDecoder(RADII), targets, valid=valid)
    assert not (result.masks & ~valid).any()
    torch.testing.assert_close(result.iou, mask_iou(result.masks, targets, valid))
    assert all_are(result, PerturbationOutcome.IN_BAND)


def test_no_masks() -> None:
    result = attack(DiscDecoder(RADII[:0]), torch.zeros(0, SIDE, SIDE, dtype=torch.bool))
    assert result.masks.shape == (0, SIDE, SIDE)


def test_unknown_criterion(target_masks: Tensor) -> None:
    with pytest.raises(ValueError, match="dice"):
        attack(DiscDecoder(RADII), target_masks, criterion="hinge")
