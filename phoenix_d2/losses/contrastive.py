"""Contrastive mask refinement learning, CMRL (paper 3.4, B.6 and Algorithm 2).

The three terms take the features of one mask as a list of its valid pixels. K is the number of
these pixels, C the number of channels. Each term draws its own anchors, which leaves its
expectation as in Algorithm 2, where the first two terms share them. A term that finds no failure
pixel, or nothing to compare it with, is exactly zero and still part of the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from phoenix_d2.losses.regions import RefinementRegions

InterForm: TypeAlias = Literal["logsumexp", "softplus"]
"""How the inter-class term repels: as Eq. (2) states it, or as Algorithm 2 does."""

# anchors times all pixels of a 256 x 256 frame, for all masks of a batch, is gigabytes: this many anchors at a time
# are compared with all pixels, and the products are made again in the backward pass instead of kept; blocks this small
# stay in a CPU's cache, which makes it faster than one product
_ANCHORS_AT_ONCE = 64


class ContrastiveLosses(NamedTuple):
    """The three terms of CMRL, unweighted scalars."""

    intra: Tensor
    inter: Tensor
    self_improvement: Tensor


def cmrl_loss(
    features: Tensor,
    regions: RefinementRegions,
    valid: Tensor,
    *,
    temperature: float = 0.07,
    num_samples: int = 256,
    num_self_samples: int = 512,
    inter_form: InterForm = "logsumexp",
    generator: torch.Generator,
) -> ContrastiveLosses:
    """The three contrastive terms, each averaged over all masks.

    Masks are taken one by one, as in Algorithm 2, because their numbers of pixels differ.

    Args:
        features: (N, C, s, s) float, projected and not yet normalised.
        regions: of the same N masks.
        valid: (N, s, s) or (1, s, s) bool, pixels that are image and not padding.
        temperature: divides the cosine similarities. Not stated in the paper; our choice.
        num_samples: most pixels drawn from a region, in the intra- and inter-class terms.
        num_self_samples: the same in the self-improvement term.
        inter_form: see `inter_class_loss`.
        generator: draws the pixels; on any device.
    """
    # the sum of nothing: zero, and tied to the graph even when there is no mask at all
    total = features[:0].sum().expand(3)
    valid = valid.expand(len(features), -1, -1)
    for feature_map, inside, *mask_regions in zip(features, valid, *regions, strict=True):
        pixels = F.normalize(feature_map[:, inside].T, dim=1)
        pixel_regions = RefinementRegions(*(region[inside] for region in mask_regions))
        terms = (
            intra_class_loss(
                pixels, pixel_regions, temperature=temperature, num_samples=num_samples, generator=generator
            ),
            inter_class_loss(
                pixels,
                pixel_regions,
                temperature=temperature,
                num_samples=num_samples,
                form=inter_form,
                generator=generator,
            ),
            self_improvement_loss(
                pixels, pixel_regions, temperature=temperature, num_samples=num_self_samples, generator=generator
            ),
        )
        total = total + torch.stack(terms)
    return ContrastiveLosses(*(total / max(len(features), 1)).unbind())


def intra_class_loss(
    pixels: Tensor,
    regions: RefinementRegions,
    *,
    temperature: float,
    num_samples: int,
    generator: torch.Generator,
) -> Tensor:
    """Pull failures to the correct pixels of their own class, Eq. (1), foreground and background added.

    Args:
        pixels: (K, C) float, features of one mask's valid pixels, of length 1.
        regions: of the same pixels, each (K,) bool.
        temperature: divides the cosine similarities.
        num_samples: most pixels drawn from a region; the denominator always counts all K.
        generator: draws the pixels.

    Returns:
        Scalar, not negative.
    """
    losses = [
        _info_nce(
            _sample(pixels, failures, num_samples, generator),
            _sample(pixels, correct, num_samples, generator),
            pixels,
            temperature,
        )
        for failures, correct in (
            (regions.failure_fg, regions.true_fg | regions.success_fg),
            (regions.failure_bg, regions.true_bg | regions.success_bg),
        )
    ]
    return losses[0] + losses[1]


def inter_class_loss(
    pixels: Tensor,
    regions: RefinementRegions,
    *,
    temperature: float,
    num_samples: int,
    form: InterForm,
    generator: torch.Generator,
) -> Tensor:
    """Push failures away from the other class, both directions added.

    Args:
        pixels: (K, C) float, features of one mask's valid pixels, of length 1.
        regions: of the same pixels, each (K,) bool.
        temperature: divides the cosine similarities.
        num_samples: most pixels drawn from a region.
        form: "logsumexp" is Eq. (2), whose negatives are all pixels of the other class, failures
            included; it has no lower bound of zero. "softplus" is Algorithm 2: log(1 + exp) summed
            over the other class' correct pixels only.
        generator: draws the pixels.

    Returns:
        Scalar.
    """
    negatives_fg, negatives_bg = regions.true_fg | regions.success_fg, regions.true_bg | regions.success_bg
    repulsion: Callable[[Tensor, Tensor, float], Tensor] = _sum_softplus
    if form == "logsumexp":
        negatives_fg, negatives_bg = negatives_fg | regions.failure_fg, negatives_bg | regions.failure_bg
        repulsion = _log_sum_exp
    loss = pixels[:0].sum()
    for failures, negatives in ((regions.failure_fg, negatives_bg), (regions.failure_bg, negatives_fg)):
        anchors = _sample(pixels, failures, num_samples, generator)
        others = _sample(pixels, negatives, num_samples, generator)
        if len(anchors) and len(others):
            loss = loss + repulsion(anchors, others, temperature).mean()
    return loss


def self_improvement_loss(
    pixels: Tensor,
    regions: RefinementRegions,
    *,
    temperature: float,
    num_samples: int,
    generator: torch.Generator,
) -> Tensor:
    """Pull failures to the pixels that the refiner has mended, Eq. (3).

    Args:
        pixels: (K, C) float, features of one mask's valid pixels, of length 1.
        regions: of the same pixels, each (K,) bool.
        temperature: divides the cosine similarities.
        num_samples: most pixels drawn from a region; the denominator always counts all K.
        generator: draws the pixels.

    Returns:
        Scalar, not negative.
    """
    failures = _sample(pixels, regions.failure_fg | regions.failure_bg, num_samples, generator)
    successes = _sample(pixels, regions.success_fg | regions.success_bg, num_samples, generator)
    return _info_nce(failures, successes, pixels, temperature)


def _sample(pixels: Tensor, region: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """(up to `num_samples`, C) pixels of a region, drawn uniformly and without repetition."""
    inside = region.nonzero()[:, 0]
    order = torch.randperm(len(inside), generator=generator, device=generator.device)
    return pixels[inside[order[:num_samples].to(inside.device)]]


def _info_nce(anchors: Tensor, positives: Tensor, pixels: Tensor, temperature: float) -> Tensor:
    """Mean over the anchors of -log(sum over positives / sum over all pixels)."""
    if len(anchors) == 0 or len(positives) == 0:
        return pixels[:0].sum()
    attraction = _log_sum_exp(anchors, positives, temperature)
    partition = [
        checkpoint(_log_sum_exp, block, pixels, temperature, use_reentrant=False, preserve_rng_state=False)
        for block in torch.split(anchors, _ANCHORS_AT_ONCE)
    ]
    return (torch.cat(partition) - attraction).mean()


def _log_sum_exp(anchors: Tensor, others: Tensor, temperature: float) -> Tensor:
    """(anchors,) log of the summed exponentials, as in Eq. (1) to (3)."""
    return _similarity(anchors, others, temperature).logsumexp(dim=1)


def _sum_softplus(anchors: Tensor, others: Tensor, temperature: float) -> Tensor:
    """(anchors,) sum of log(1 + exp), Algorithm 2's inter-class term."""
    return F.softplus(_similarity(anchors, others, temperature)).sum(dim=1)


def _similarity(anchors: Tensor, others: Tensor, temperature: float) -> Tensor:
    """(anchors, others) cosine similarity over temperature, which divides the smaller factor, not the product."""
    return (anchors / temperature) @ others.T
