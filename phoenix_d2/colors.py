"""What the colours of an image say of a mask in it. Not in the paper; ours.

A decoder learnt what objects look like from other images; what colours this one object has, only its own image tells.
So GrabCut's colour models (Rother et al., SIGGRAPH 2004), as histograms, are asked too, before the first pass and after
each, and what they and the decoder say is drawn to the edges of the image by a guided filter (He et al., ECCV 2010).
All of it lies in the low-resolution frame. Shape letters as in `structures`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

_BINS = 24
"""Of a channel of the histograms."""

_PRIOR_PIXELS = 5.0
"""Pixels of any colour, divided as all pixels are, that a histogram begins with: rare colours say little."""

_EDGE_VARIANCE = 1e-3
"""Of colours from 0 to 1 among neighbours, above which the guided filter takes what it sees for an edge."""

_COARSE_LOGIT = 1.0
"""How sure a coarse mask is of its pixels: it is right about three of four."""

_LEAST_SHARE = 1e-6
_LEAST_PROBABILITY = 1e-3


@dataclass(frozen=True)
class WindowColors:
    """The colours of N windows, sorted once for all masks and passes.

    Attributes:
        pixels: (N, 3, s, s) float in [0, 1], 0 in the padding.
        valid: (N, s, s) bool, pixels that are no padding.
        bins: (N, 8, s, s) long, the eight bins of the histogram that a pixel's colour lies between.
        shares: (N, 8, s, s) float, of the pixel that each bin gets; 0 in the padding.
        counts: (N, 1, s, s) float, valid pixels among each pixel and its eight neighbours, at least 1.
        means: (N, 3, s, s) float, of their colours.
        precisions: (N, 3, 3, s, s) float, inverse covariances of their colours.
    """

    pixels: Tensor
    valid: Tensor
    bins: Tensor
    shares: Tensor
    counts: Tensor
    means: Tensor
    precisions: Tensor

    @classmethod
    def of(cls, pixels: Tensor, valid: Tensor) -> WindowColors:
        """Sort the colours of windows.

        Args:
            pixels: (N, 3, s, s) float RGB in [0, 1].
            valid: (N, s, s) bool, pixels that are no padding.
        """
        pixels = pixels.clamp(0, 1) * valid[:, None]
        scaled = pixels * (_BINS - 1)
        low = scaled.long().clamp(max=_BINS - 2)
        above = scaled - low
        corners = list(product((0, 1), repeat=3))
        steps = low.new_tensor([_BINS**2, _BINS, 1])[:, None, None]
        bins = torch.stack([((low + low.new_tensor(corner)[:, None, None]) * steps).sum(1) for corner in corners], 1)
        parts = torch.stack([1 - above, above])
        shares = torch.stack([parts[r, :, 0] * parts[g, :, 1] * parts[b, :, 2] for r, g, b in corners], 1)

        counts = _sum_around(valid[:, None].float()).clamp(min=1)
        means = _sum_around(pixels) / counts
        products = _sum_around((pixels[:, :, None] * pixels[:, None]).flatten(1, 2)) / counts
        covariances = products.unflatten(1, (3, 3)) - means[:, :, None] * means[:, None]
        covariances = covariances + _EDGE_VARIANCE * torch.eye(3).to(pixels)[..., None, None]
        return cls(pixels, valid, bins, shares * valid[:, None], counts, means, _inverse(covariances))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Tensor) -> WindowColors:
        """Those of some of the windows."""
        return WindowColors(*(getattr(self, field.name)[rows] for field in fields(self)))

    def correct(self, logits: Tensor, weight: float) -> Tensor:
        """Let colours have a say in what a decoder said.

        Args:
            logits: (N, s, s) float, of a mask in each window, or of N masks in the only one.
            weight: of the colours' log odds beside those of the decoder.

        Returns:
            (N, s, s) float logits.
        """
        odds = logits + weight * self.log_odds(logits.sigmoid())
        probabilities = self._filter(odds.sigmoid())
        return probabilities.clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY).logit()

    def clean(self, masks: Tensor, weight: float) -> Tensor:
        """Let colours have a say in coarse masks: what they find odd is not worth a decoder's attention.

        Args:
            masks: (N, s, s) float in [0, 1], share of each pixel that the mask covers; as in `correct` otherwise.
            weight: as in `correct`.

        Returns:
            (N, s, s) float, 0 or 1; a mask that nothing would be left of stays as it was.
        """
        cleaned = (self.correct(_COARSE_LOGIT * (2 * masks - 1), weight) > 0) & self.valid
        left = cleaned.flatten(1).any(1)
        return torch.where(left[:, None, None], cleaned.to(masks.dtype), masks)

    def log_odds(self, probabilities: Tensor) -> Tensor:
        """How much more frequent a pixel's colour is on the object than off it.

        Args:
            probabilities: (N, s, s) float, that a pixel is of the object.

        Returns:
            (N, s, s) float, log of the ratio of frequencies; 0 in the padding.
        """
        n = len(probabilities)
        bins, shares = self.bins.flatten(1).expand(n, -1), self.shares.expand(n, -1, -1, -1)
        count = torch.zeros(n, _BINS**3, device=shares.device)
        on_object = count.scatter_add(1, bins, (shares * probabilities[:, None]).flatten(1))
        elsewhere = count.scatter_add(1, bins, (shares * (1 - probabilities)[:, None]).flatten(1))
        share = on_object.sum(1, keepdim=True) / self.valid.flatten(1).sum(1, keepdim=True)
        share = share.clamp(_LEAST_SHARE, 1 - _LEAST_SHARE)
        odds = (on_object + _PRIOR_PIXELS * share).log() - (elsewhere + _PRIOR_PIXELS * (1 - share)).log()
        of_bins: Tensor = (odds - share.logit()).gather(1, bins)
        return (of_bins.view_as(shares) * shares).sum(1)

    def _filter(self, values: Tensor) -> Tensor:
        """Guided filter: (N, s, s) values, each replaced by what its neighbours' colours let expect of its own."""
        mean = self._mean_around(values[:, None])
        covariance = self._mean_around(self.pixels * values[:, None]) - self.means * mean
        slopes = (self.precisions * covariance[:, None]).sum(2)
        offsets = mean - (slopes * self.means).sum(1, keepdim=True)
        lines = self._mean_around(torch.cat([slopes, offsets], 1))
        return (lines[:, :3] * self.pixels).sum(1) + lines[:, 3]

    def _mean_around(self, maps: Tensor) -> Tensor:
        """Mean of (N, C, s, s) maps over the valid ones of each pixel and its eight neighbours."""
        return _sum_around(maps * self.valid[:, None]) / self.counts


def _inverse(matrices: Tensor) -> Tensor:
    """Inverses of (N, 3, 3, s, s) symmetric matrices by their cofactors; several times faster than to factor them."""
    a, b, c = matrices.unbind(1)
    cofactors = torch.stack([torch.linalg.cross(u, v, dim=1) for u, v in ((b, c), (c, a), (a, b))], 1)
    return cofactors / (a * cofactors[:, 0]).sum(1)[:, None, None]


def _sum_around(maps: Tensor) -> Tensor:
    """Sum of (N, C, s, s) maps over each pixel and its eight neighbours; many times faster here than pooling."""
    padded = F.pad(maps, (1, 1, 1, 1))
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
