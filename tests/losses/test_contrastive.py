"""The terms of CMRL against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phoenix_d2.losses import contrastive
from phoenix_d2.losses.contrastive import ContrastiveLosses
from phoenix_d2.losses.projector import Projector
from phoenix_d2.losses.regions import RefinementRegions, refinement_regions

E = math.e
RIGHT, UP = (1.0, 0.0), (0.0, 1.0)
IDENTITY = nn.Identity()

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


def cmrl_loss(
    features: Tensor, regions: RefinementRegions, valid: Tensor, *, projector: nn.Module = IDENTITY, **settings: Any
) -> ContrastiveLosses:
    """The loss, of features as they are."""
    return contrastive.cmrl_loss(features, regions, valid, projector=projector, **settings)


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


def equal_pixels(num_pixels: int) -> tuple[Tensor, RefinementRegions, Tensor]:
    """Pixels of one mask with one and the same feature, every region of the same size."""
    region = (torch.arange(num_pixels) % 6).view(1, 1, -1)
    features = torch.tensor(RIGHT).view(1, 2, 1, 1).expand(1, 2, 1, num_pixels)
    return features, RefinementRegions(*(region == i for i in range(6))), region >= 0


def test_number_of_samples():
    batch = equal_pixels(600)
    settings = {"temperature": 1.0, "num_samples": 10, "num_self_samples": 20}
    # similarities are all 1, so the losses count pixels; the denominators always hold all 600
    losses = cmrl_loss(*batch, **settings, generator=seeded())
    assert losses.intra.item() == pytest.approx(2 * math.log(600 / 10))
    assert losses.inter.item() == pytest.approx(2 * math.log(10 * E))
    assert losses.self_improvement.item() == pytest.approx(math.log(600 / 20))
    softplus = cmrl_loss(*batch, **settings, inter_form="softplus", generator=seeded())
    assert softplus.inter.item() == pytest.approx(2 * 10 * math.log(1 + E))


def test_samples_of_small_regions_are_not_repeated():
    losses = cmrl_loss(*equal_pixels(60), temperature=1.0, inter_form="softplus", generator=seeded())
    assert losses.inter.item() == pytest.approx(2 * 20 * math.log(1 + E))


def test_sampled_anchors_keep_the_expectation():
    # foreground and background failures are unequally many, and the other regions small enough to be drawn whole
    sizes = (2, 2, 2, 2, 30, 10)
    region = torch.arange(6).repeat_interleave(torch.tensor(sizes)).view(1, 1, -1)
    regions = RefinementRegions(*(region == i for i in range(6)))
    features = torch.randn(1, 4, 1, sum(sizes), generator=seeded())
    settings = {"temperature": 1.0, "inter_form": "softplus"}
    expected = cmrl_loss(features, regions, region >= 0, **settings, generator=seeded())
    generator = seeded(1)
    drawn = [
        cmrl_loss(features, regions, region >= 0, **settings, num_samples=4, num_self_samples=4, generator=generator)
        for _ in range(400)
    ]
    means = torch.tensor(drawn).mean(dim=0)
    torch.testing.assert_close(means, torch.stack(expected), rtol=0.02, atol=0.02)
    assert torch.tensor(drawn).std(dim=0).min() > 0.05


def plain_losses(features: Tensor, regions: RefinementRegions, valid: Tensor, temperature: float) -> Tensor:
    """Eq. (1) to (3) as they are written, of all pixels."""
    losses = torch.zeros(3, dtype=features.dtype)
    for pixels, inside, *masks in zip(features.flatten(2).mT, valid.flatten(1), *regions, strict=True):
        true_fg, true_bg, success_fg, success_bg, failure_fg, failure_bg = (mask.flatten() for mask in masks)
        exponentials = (F.normalize(pixels, dim=1) @ F.normalize(pixels, dim=1).T / temperature).exp()

        def sums(anchors: Tensor, others: Tensor, exponentials: Tensor = exponentials) -> Tensor:
            return exponentials[anchors][:, others].sum(dim=1)

        for failure, correct, opposite in (
            (failure_fg, true_fg | success_fg, true_bg | success_bg | failure_bg),
            (failure_bg, true_bg | success_bg, true_fg | success_fg | failure_fg),
        ):
            losses[0] -= (sums(failure, correct) / sums(failure, inside)).log().mean()
            losses[1] += sums(failure, opposite).log().mean()
        failure, success = failure_fg | failure_bg, success_fg | success_bg
        losses[2] -= (sums(failure, success) / sums(failure, inside)).log().mean()
    return losses / len(features)


# blocks that divide the pixels, that do not, and that hold them all
@pytest.mark.parametrize("pixels_at_once", [36, 25, 1000])
def test_loss_and_gradient_are_those_of_the_formulas(monkeypatch, pixels_at_once):
    monkeypatch.setattr(contrastive, "_PIXELS_AT_ONCE", pixels_at_once)
    features, regions, valid = random_batch()
    features.requires_grad_()
    plain = plain_losses(features, regions, valid.expand(3, -1, -1), 0.07)
    ours = torch.stack(cmrl_loss(features, regions, valid, generator=seeded()))
    torch.testing.assert_close(ours, plain)
    for got, expected in zip(ours, plain, strict=True):
        (gradient,) = torch.autograd.grad(got, features, retain_graph=True)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, features, retain_graph=True)[0])


@pytest.mark.parametrize("temperature", [0.001, 100.0])
def test_no_exponential_overflows(temperature):
    features, regions, valid = random_batch()
    losses = cmrl_loss(features.float(), regions, valid, temperature=temperature, generator=seeded())
    expected = cmrl_loss(features, regions, valid, temperature=temperature, generator=seeded())
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected).float(), rtol=1e-4, atol=1e-5)


def test_projects_the_pixels_of_masks_with_failures_alone():
    features, regions, valid = random_batch()
    regions = regions._replace(
        **{
            name: getattr(regions, name) & (torch.arange(3) != 1)[:, None, None]
            for name in ("failure_fg", "failure_bg")
        }
    )
    projected: list[tuple[int, ...]] = []

    def projector(pixels: Tensor) -> Tensor:
        projected.append(tuple(pixels.shape))
        return pixels

    cmrl_loss(features, regions, valid, projector=projector, generator=seeded())
    assert projected == [(2 * int(valid.sum()), 4)]


def test_the_projector_stays_in_the_graph():
    features, _, valid = random_batch()
    target = torch.rand(features[:, 0].shape, generator=seeded()) > 0.5
    projector = Projector(4).double()
    no_failures = refinement_regions(target, ~target, target, valid)
    losses = cmrl_loss(features, no_failures, valid, projector=projector, generator=seeded())
    sum(losses).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in projector.parameters())


def test_similarities_with_all_pixels_are_not_kept():
    features, regions, valid = equal_pixels(6000)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        settings = {"num_samples": 100, "num_self_samples": 100, "generator": seeded()}
        cmrl_loss(features.clone().requires_grad_(), regions, valid, **settings)
    assert kept and max(kept) <= features.numel()
