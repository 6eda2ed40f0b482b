"""Contrastive mask refinement learning, CMRL (paper 3.4, B.6 and Algorithm 2).

The features of one mask are taken as a list of its valid pixels. K is the number of these pixels, C the number of
channels. The failures that serve as anchors are drawn once for all three terms, each of which takes the first of its
kind: the expectation of every term is that of Algorithm 2, and no anchor is compared with all pixels twice. A term that
finds no failure pixel, or nothing to compare it with, is exactly zero and still part of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from phoenix_d2.losses.regions import RefinementRegions

InterForm: TypeAlias = Literal["logsumexp", "softplus"]
"""How the inter-class term repels: as Eq. (2) states it, or as Algorithm 2 does."""

# pixels that all anchors of a mask are compared with at a time: few enough for a CPU's cache; a GPU wants many at once
_PIXELS_AT_ONCE, _PIXELS_AT_ONCE_ON_GPU = 2048, 2**16
# shorter vectors have no direction
_EPS = 1e-12


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
    projector: Callable[[Tensor], Tensor],
    temperature: float = 0.07,
    num_samples: int = 256,
    num_self_samples: int = 512,
    inter_form: InterForm = "logsumexp",
    generator: torch.Generator,
) -> ContrastiveLosses:
    """The three contrastive terms, each averaged over all masks.

    - Intra-class, Eq. (1), not negative: pulls failures to the correct pixels of their own class, foreground and
      background added.
    - Inter-class: pushes failures away from the other class, both directions added. As "logsumexp", Eq. (2), its
      negatives are all pixels of the other class, failures included, and it has no lower bound of zero; as "softplus",
      Algorithm 2, log(1 + exp) is summed over the other class' correct pixels only.
    - Self-improvement, Eq. (3), not negative: pulls failures to the pixels that the refiner has mended.

    Masks are taken one by one, as in Algorithm 2, because their numbers of pixels differ.

    Args:
        features: (N, C, s, s) float.
        regions: of the same N masks.
        valid: (N, s, s) or (1, s, s) bool, pixels that are image and not padding.
        projector: maps (P, C) features of any pixels to the space in which they are compared, not yet normalised. It is
            called once, with the valid pixels of the masks that have failures, also where there are none, so that its
            parameters are always part of the graph.
        temperature: divides the cosine similarities. Not stated in the paper; our choice.
        num_samples: most pixels drawn from a region, in the intra- and inter-class terms; the denominator of Eq. (1)
            and (3) always counts all pixels.
        num_self_samples: the same in the self-improvement term.
        inter_form: see above.
        generator: draws the pixels; on any device.
    """
    failing = (regions.failure_fg | regions.failure_bg).flatten(1).any(dim=1)
    inside = valid & failing[:, None, None]
    pixels = projector(features.movedim(1, -1)[inside])
    pixel_regions = torch.stack(regions)[:, inside]
    num_pixels = inside[failing].sum(dim=(1, 2)).tolist()
    if not num_pixels:
        # the sum of nothing: zero, and tied to the graph
        return ContrastiveLosses(*pixels.sum().expand(3).unbind())
    total = torch.zeros(3, device=pixels.device)
    for mask_pixels, mask_regions in zip(pixels.split(num_pixels), pixel_regions.split(num_pixels, dim=1), strict=True):
        terms = _mask_terms(
            mask_pixels,
            RefinementRegions(*mask_regions),
            temperature=temperature,
            num_samples=num_samples,
            num_self_samples=num_self_samples,
            inter_form=inter_form,
            generator=generator,
        )
        total = total + torch.stack(terms)
    return ContrastiveLosses(*(total / len(features)).unbind())


def _mask_terms(
    pixels: Tensor,
    regions: RefinementRegions,
    *,
    temperature: float,
    num_samples: int,
    num_self_samples: int,
    inter_form: InterForm,
    generator: torch.Generator,
) -> ContrastiveLosses:
    """The terms of one mask, from its (K, C) pixels and their regions, (K,) bool; see `cmrl_loss`."""
    correct_fg, correct_bg = regions.true_fg | regions.success_fg, regions.true_bg | regions.success_bg
    negatives_fg, negatives_bg = correct_fg, correct_bg
    if inter_form == "logsumexp":
        negatives_fg, negatives_bg = correct_fg | regions.failure_fg, correct_bg | regions.failure_bg

    failures = _shuffled(regions.failure_fg | regions.failure_bg, generator)
    anchors_fg = failures[regions.failure_fg[failures]][:num_samples]
    anchors_bg = failures[regions.failure_bg[failures]][:num_samples]
    anchors_self = failures[:num_self_samples]
    mended = _shuffled(regions.success_fg | regions.success_bg, generator)[:num_self_samples]
    pairs = (
        (anchors_fg, _shuffled(correct_fg, generator)[:num_samples]),
        (anchors_bg, _shuffled(correct_bg, generator)[:num_samples]),
        (anchors_self, mended),
        (anchors_fg, _shuffled(negatives_bg, generator)[:num_samples]),
        (anchors_bg, _shuffled(negatives_fg, generator)[:num_samples]),
    )
    sides = [side for pair in pairs for side in pair]
    # one gather for all: its gradient is as large as all pixels
    sampled = F.normalize(pixels[torch.cat(sides)], dim=1, eps=_EPS).split([len(side) for side in sides])
    # dividing the smaller factor, not the product
    intra_fg, intra_bg, own, inter_fg, inter_bg = (
        (anchors / temperature) @ others.T for anchors, others in zip(sampled[::2], sampled[1::2], strict=True)
    )

    anchors = (anchors_fg, anchors_bg, anchors_self)
    distinct, index = torch.cat(anchors).unique(return_inverse=True)
    log_sums: Tensor = _LogSumExp.apply(pixels, distinct, temperature)
    sums_fg, sums_bg, sums_self = log_sums[index].split([len(part) for part in anchors])
    return ContrastiveLosses(
        intra=_info_nce(intra_fg, sums_fg) + _info_nce(intra_bg, sums_bg),
        inter=_repulsion(inter_fg, inter_form) + _repulsion(inter_bg, inter_form),
        self_improvement=_info_nce(own, sums_self),
    )


def _shuffled(region: Tensor, generator: torch.Generator) -> Tensor:
    """The pixels of a (K,) bool region in random order: (up to K,) long."""
    inside = region.nonzero()[:, 0]
    order = torch.randperm(len(inside), generator=generator, device=generator.device)
    return inside[order.to(inside.device)]


def _info_nce(similarities: Tensor, log_sums: Tensor) -> Tensor:
    """Mean over the anchors of -log(sum over positives / sum over all pixels).

    Args:
        similarities: (A, P) of anchors to their positives, over temperature.
        log_sums: (A,) log of the sum over all pixels.
    """
    if similarities.numel() == 0:
        return similarities.sum()
    return (log_sums - similarities.logsumexp(dim=1)).mean()


def _repulsion(similarities: Tensor, form: InterForm) -> Tensor:
    """Mean over the anchors of what (A, P) similarities to their negatives, over temperature, cost."""
    if similarities.numel() == 0:
        return similarities.sum()
    if form == "logsumexp":
        return similarities.logsumexp(dim=1).mean()
    return F.softplus(similarities).sum(dim=1).mean()


class _LogSumExp(torch.autograd.Function):
    """(A,) log of the summed exponentials of the similarities of some pixels, the anchors, to all (K, C) pixels.

    A times K similarities of all masks of a batch would be gigabytes at 256 x 256: they are made block by block, and
    again in the backward pass, which turns each block into its gradients at once. Pixels are brought to length 1 block
    by block too, while they are in a CPU's cache.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, anchors: Tensor, temperature: float) -> Tensor:
        """Args: the pixels, the (A,) long indices of anchors among them, and what divides their similarities."""
        lengths = torch.linalg.vector_norm(pixels, dim=1, keepdim=True).clamp_(min=_EPS)
        units = pixels[anchors] / lengths[anchors]
        scaled = units / temperature
        # nothing is more similar to an anchor than itself: no other maximum need be looked for
        highest = (scaled * units).sum(dim=1)
        sums = torch.zeros_like(highest)
        for block, block_lengths in _blocks(pixels, lengths):
            sums += (scaled @ (block / block_lengths).T).sub_(highest[:, None]).exp_().sum(dim=1)
        log_sums: Tensor = highest + sums.log()
        ctx.save_for_backward(pixels, lengths, anchors, units, log_sums)
        ctx.temperature = temperature
        return log_sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        pixels, lengths, anchors, units, log_sums = ctx.saved_tensors
        scaled = units / ctx.temperature
        weighted = scaled * gradient[:, None]
        to_pixels, to_anchors = torch.empty_like(pixels), torch.zeros_like(units)
        for block, block_lengths, to_block in _blocks(pixels, lengths, to_pixels):
            others = block / block_lengths
            softmax = (scaled @ others.T).sub_(log_sums[:, None]).exp_()
            to_block.copy_(_to_any_length(softmax.T @ weighted, others, block_lengths))
            to_anchors.addmm_(softmax, others)
        to_anchors *= gradient[:, None] / ctx.temperature
        to_pixels.index_add_(0, anchors, _to_any_length(to_anchors, units, lengths[anchors]))
        return to_pixels, None, None


def _to_any_length(gradient: Tensor, units: Tensor, lengths: Tensor) -> Tensor:
    """The (P, C) gradient of vectors whose directions, (P, C) of length 1, have the given one."""
    along: Tensor = (gradient * units).sum(dim=1, keepdim=True)
    return (gradient - along * units) / lengths


def _blocks(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    size = _PIXELS_AT_ONCE if rows[0].device.type == "cpu" else _PIXELS_AT_ONCE_ON_GPU
    return zip(*(each.split(size) for each in rows), strict=True)
