"""The terms of CMRL against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from phoenix_d2.losses.contrastive import (
    ContrastiveLosses,
    cmrl_loss,
    inter_class_loss,
    intra_class_loss,
    self_improvement_loss,
)
from phoenix_d2.losses.regions import RefinementRegions, refinement_regions

E = math.e
RIGHT, UP = (1.0, 0.0), (0.0, 1.0)

# One pixel of each region, one in none of them (the refiner's own error), two of padding: target, noisy, refined,
# valid, feature. Failures look like the other class.
PIXELS = [
    (1, 1, 1, 1, RIGHT),
    (0, 0, 0, 1, UP),
    (1, 0, 1, 1, RIGHT),
    (0, 1, 0, 1, UP),
    (1, 0, 0, 1, UP),
    (0, 1, 1, 1, RIGHT),
    (1, 1, 0, 1, RIGHT),
    (1, 0, 0, 0, UP),
    (0, 1, 1, 0, RIGHT),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hand_made() -> tuple[Tensor, RefinementRegions, Tensor]:
    *masks, directions = zip(*PIXELS, strict=True)
    target, noisy, refined, valid = (torch.tensor(mask).bool().view(1, 3, 3) for mask in masks)
    # lengths differ on purpose: only the direction counts
    features = torch.tensor(directions).T.reshape(1, 2, 3, 3) * torch.arange(1, 10).view(1, 1, 3, 3)
    return features, refinement_regions(target, noisy, refined, valid), valid


def random_batch(n: int = 3, size: int = 12) -> tuple[Tensor, RefinementRegions, Tensor]:
    generator = seeded()
    features = torch.randn(n, 4, size, size, generator=generator, dtype=torch.float64)
    masks = (torch.rand(n, size, size, generator=generator) > 0.5 for _ in range(3))
    valid = torch.ones(1, size, size, dtype=torch.bool)
    valid[:, size // 2 :] = False
    return features, refinement_regions(*masks, valid), valid


@pytest.mark.parametrize(
    ("inter_form", "inter"),
    [
        # each anchor sees two pixels like itself among the other class, and that class' failure unlike itself
        ("logsumexp", 2 * math.log(1 + 2 * E)),
        # the same two alone
        ("softplus", 2 * 2 * math.log(1 + E)),
    ],
)
def test_known_answer(inter_form, inter):
    features, regions, valid = hand_made()
    losses = cmrl_loss(features, regions, valid, temperature=1.0, inter_form=inter_form, generator=seeded())
    # seven valid pixels, four to the right and three up; an anchor's two positives are unlike itself
    omega_up, omega_right = 4 + 3 * E, 3 + 4 * E
    assert losses.intra.item() == pytest.approx(math.log(omega_up / 2) + math.log(omega_right / 2))
    assert losses.inter.item() == pytest.approx(inter)
    expected = (math.log(omega_up / (1 + E)) + math.log(omega_right / (1 + E))) / 2
    assert losses.self_improvement.item() == pytest.approx(expected)


def test_temperature_divides_the_similarity():
    features, regions, valid = hand_made()
    losses = cmrl_loss(features, regions, valid, temperature=0.5, generator=seeded())
    assert losses.inter.item() == pytest.approx(2 * math.log(1 + 2 * E**2))


def test_masks_are_averaged_in_any_order():
    features, regions, valid = random_batch()

    def losses_of(rows: list[int]) -> Tensor:
        some = RefinementRegions(*(region[rows] for region in regions))
        return torch.stack(cmrl_loss(features[rows], some, valid, generator=seeded()))

    # every region is smaller than the number of samples, so all of it is drawn whatever the seed
    alone = torch.stack([losses_of([row]) for row in range(3)])
    torch.testing.assert_close(losses_of([0, 1, 2]), alone.mean(dim=0))
    torch.testing.assert_close(losses_of([2, 0, 1]), alone.mean(dim=0))


def test_padding_is_silent():
    features, regions, valid = random_batch()
    losses = cmrl_loss(features, regions, valid, generator=seeded())
    other = torch.where(valid[:, None], features, features.flip(1) * 3)
    torch.testing.assert_close(cmrl_loss(other, regions, valid, generator=seeded()), losses)


@pytest.mark.parametrize("inter_form", ["logsumexp", "softplus"])
def test_gradient(inter_form):
    features, regions, valid = random_batch(n=2, size=4)
    features.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: cmrl_loss(
            x, regions, valid, temperature=0.5, num_samples=3, inter_form=inter_form, generator=seeded()
        ),
        features,
    )


def assert_zero_with_graph(losses: ContrastiveLosses, features: Tensor) -> None:
    assert [loss.item() for loss in losses] == [0, 0, 0]
    sum(losses).backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.parametrize("inter_form", ["logsumexp", "softplus"])
def test_no_failures(inter_form):
    features, _, valid = random_batch()
    features.requires_grad_()
    target = torch.rand(features[:, 0].shape, generator=seeded()) > 0.5
    regions = refinement_regions(target, ~target, target, valid)
    assert_zero_with_graph(cmrl_loss(features, regions, valid, inter_form=inter_form, generator=seeded()), features)


def test_each_term_alone_keeps_the_graph():
    pixels, regions = equal_pixels(60)
    pixels = pixels.clone().requires_grad_()
    regions = regions._replace(failure_fg=regions.failure_fg & False, failure_bg=regions.failure_bg & False)
    settings = {"temperature": 1.0, "num_samples": 10, "generator": seeded()}
    for loss in (
        intra_class_loss(pixels, regions, **settings),
        inter_class_loss(pixels, regions, form="softplus", **settings),
        self_improvement_loss(pixels, regions, **settings),
    ):
        (gradient,) = torch.autograd.grad(loss, pixels)
        assert loss == 0 and not gradient.any()


def test_no_masks():
    features, regions, valid = random_batch()
    features = features[:0].requires_grad_()
    none = RefinementRegions(*(region[:0] for region in regions))
    assert_zero_with_graph(cmrl_loss(features, none, valid, generator=seeded()), features)


@pytest.mark.parametrize("inter_form", ["logsumexp", "softplus"])
def test_nothing_to_compare_with(inter_form):
    features, _, valid = random_batch()
    features.requires_grad_()
    nothing = torch.zeros_like(features[:, 0], dtype=torch.bool)
    regions = refinement_regions(~nothing, nothing, nothing, valid)
    assert regions.failure_fg.any()
    assert_zero_with_graph(cmrl_loss(features, regions, valid, inter_form=inter_form, generator=seeded()), features)


def test_no_successes_leave_the_other_terms():
    features, _, valid = random_batch()
    target, noisy = (torch.rand(features[:, 0].shape, generator=seeded(seed)) > 0.5 for seed in range(2))
    regions = refinement_regions(target, noisy, noisy, valid)
    losses = cmrl_loss(features, regions, valid, generator=seeded())
    assert losses.self_improvement == 0
    assert losses.intra > 0 and losses.inter != 0


def test_seeds_repeat():
    features, regions, valid = random_batch()

    def losses_of(seed: int) -> list[float]:
        return [
            loss.item()
            for loss in cmrl_loss(features, regions, valid, num_samples=3, num_self_samples=3, generator=seeded(seed))
        ]

    assert losses_of(1) == losses_of(1)
    assert all(first != second for first, second in zip(losses_of(1), losses_of(2), strict=True))


def equal_pixels(num_pixels: int) -> tuple[Tensor, RefinementRegions]:
    """Pixels with one and the same feature, every region of the same size."""
    region = torch.arange(num_pixels) % 6
    return torch.tensor([RIGHT]).expand(num_pixels, -1), RefinementRegions(*(region == i for i in range(6)))


def test_number_of_samples():
    pixels, regions = equal_pixels(600)
    settings = {"temperature": 1.0, "num_samples": 10, "generator": seeded()}
    # similarities are all 1, so the losses count pixels; the denominators always hold all 600
    assert intra_class_loss(pixels, regions, **settings).item() == pytest.approx(2 * math.log(600 / 10))
    assert self_improvement_loss(pixels, regions, **settings).item() == pytest.approx(math.log(600 / 10))
    logsumexp = inter_class_loss(pixels, regions, form="logsumexp", **settings)
    assert logsumexp.item() == pytest.approx(2 * math.log(10 * E))
    softplus = inter_class_loss(pixels, regions, form="softplus", **settings)
    assert softplus.item() == pytest.approx(2 * 10 * math.log(1 + E))


def test_samples_of_small_regions_are_not_repeated():
    pixels, regions = equal_pixels(60)
    loss = inter_class_loss(pixels, regions, temperature=1.0, num_samples=256, form="softplus", generator=seeded())
    assert loss.item() == pytest.approx(2 * 20 * math.log(1 + E))


def test_similarities_with_all_pixels_are_not_kept():
    pixels, regions = equal_pixels(6000)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        intra_class_loss(
            pixels.clone().requires_grad_(), regions, temperature=0.07, num_samples=100, generator=seeded()
        )
    assert kept and max(kept) <= pixels.numel()
