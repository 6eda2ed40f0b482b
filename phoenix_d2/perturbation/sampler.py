"""Which noise a training sample gets: adversarial, morphological, shapeless, mild, or a model's own mistakes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.perturbation import morphology
from phoenix_d2.perturbation.adversarial import Decode, perturb_masks
from phoenix_d2.perturbation.criteria import get_criterion
from phoenix_d2.perturbation.degradations import degrade_masks
from phoenix_d2.perturbation.guidance import Guide, draw_guides, guidance_masks
from phoenix_d2.perturbation.shapeless import shapeless_masks
from phoenix_d2.structures import PerturbationOutcome, PerturbationResult

# what sums of probabilities may miss
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class NoiseSampler:
    """Draws a noisy mask for each target.

    Attributes:
        iou_range: each mask's IoU threshold is uniform between these (paper 4.1).
        guides: names of `Guide`, lower case; one is drawn for each mask (paper 4.1).
        morphology_prob: probability of morphological instead of adversarial noise (paper Table 8e).
        shapeless_prob: probability of a mask without an outline instead (not in the paper; see `shapeless`).
        degradation_prob: probability of a mask that is nearly right instead (not in the paper; see `degrade_masks`).
        min_iou: an attack that ends below its threshold and below this is replaced by morphological noise at the same
            threshold (not stated in the paper; our choice).

    The others are those of `perturb_masks`.

    Raises:
        ValueError: a value is out of range or a name is unknown.
    """

    iou_range: tuple[float, float] = (0.3, 0.9)
    guides: tuple[str, ...] = ("expansion", "contraction", "inversion")
    morphology_prob: float = 0.0
    shapeless_prob: float = 0.0
    degradation_prob: float = 0.0
    min_iou: float = 0.1
    num_embeddings: int = 50
    embed_dim: int = 256
    init_std: float = 0.1
    step_size: float = 0.01
    step_decay: float = 0.1
    max_steps: int = 10
    max_decays: int = 3
    iou_margin: float = 0.05
    criterion: str = "dice"

    def __post_init__(self) -> None:
        low, high = self.iou_range
        if not 0 < low <= high <= 1:
            raise ValueError(f"iou_range is {self.iou_range}; expected 0 < low <= high <= 1, as in (0.3, 0.9).")
        others = (self.morphology_prob, self.shapeless_prob, self.degradation_prob)
        if min(others) < 0 or self.adversarial_prob < -_ROUNDING:
            raise ValueError(
                f"morphology_prob, shapeless_prob and degradation_prob are {others}; expected probabilities from 0 to "
                "1 that add up to at most 1."
            )
        known = [guide.name.lower() for guide in Guide]
        if not self.guides or not set(self.guides) <= set(known):
            raise ValueError(f"guides is {self.guides}; expected one or more of: {', '.join(known)}.")
        get_criterion(self.criterion)

    @property
    def adversarial_prob(self) -> float:
        """What the other kinds leave."""
        return 1 - self.morphology_prob - self.shapeless_prob - self.degradation_prob

    @property
    def attacks(self) -> bool:
        """Whether any noise can be adversarial; the sum of the other probabilities may miss 1 by a rounding."""
        return self.adversarial_prob > _ROUNDING

    def __call__(
        self,
        decode: Decode | None,
        target_masks: Tensor,
        valid: Tensor | None,
        *,
        model_masks: Tensor | None = None,
        generator: torch.Generator,
    ) -> PerturbationResult:
        """Draw noisy masks.

        Args:
            decode: what is attacked; see `adversarial.Decode`. None only where no noise is adversarial.
            target_masks: (N, s, s) bool.
            valid: (N, s, s) or (1, s, s) bool, the pixels that are image and not padding; all when None.
            model_masks: (N, s, s) bool, a segmentation model's masks of the targets, used as they are (paper Table
                4e); an empty one means that there is none for this target.
            generator: draws thresholds, guides, kinds and noise.

        Returns:
            The noisy masks, in the order of the targets.

        Raises:
            ValueError: there is no decoder and some noise could be adversarial.
        """
        if decode is None and self.attacks:
            raise ValueError(
                f"decode is None, but {self.adversarial_prob:.3g} of the noise is adversarial. Pass a decoder, or let "
                "the probabilities of the other kinds add up to 1."
            )
        n, device = len(target_masks), target_masks.device
        valid = torch.ones_like(target_masks) if valid is None else valid.expand_as(target_masks)
        # drawn for all masks, used or not, so that the draws of one do not hang on the kind of another
        iou_thresholds, kind = torch.rand(2, n, generator=generator, device=generator.device).to(device)
        low, high = self.iou_range
        iou_thresholds = low + (high - low) * iou_thresholds
        guides = draw_guides(n, [Guide[name.upper()] for name in self.guides], generator=generator, device=device)

        given = torch.zeros_like(target_masks) if model_masks is None else model_masks
        result = _unattacked(given, target_masks, valid, PerturbationOutcome.FROM_MODEL)
        free = ~given.flatten(1).any(1)
        first, second = self.morphology_prob, self.morphology_prob + self.shapeless_prob
        # without a decoder nothing is left for the attack, though the sum of probabilities may miss 1 by a rounding
        third = second + self.degradation_prob if decode is not None else 1.0
        morphological = free & (kind < first)
        shapeless = free & (kind >= first) & (kind < second)
        degraded = free & (kind >= second) & (kind < third)
        if decode is not None:
            rows = (free & (kind >= third)).nonzero()[:, 0]
            attacked = self._attack(
                _of_rows(decode, rows),
                target_masks[rows],
                valid[rows],
                guides=guides[rows],
                iou_thresholds=iou_thresholds[rows],
                generator=generator,
            )
            result = _replace_rows(result, rows, attacked)
            morphological[rows] = attacked.iou < iou_thresholds[rows].clamp(max=self.min_iou)

        rows = shapeless.nonzero()[:, 0]
        coarse = shapeless_masks(target_masks[rows], generator=generator) & valid[rows]
        coarse_result = _unattacked(coarse, target_masks[rows], valid[rows], PerturbationOutcome.SHAPELESS)
        result = _replace_rows(result, rows, coarse_result)

        rows = degraded.nonzero()[:, 0]
        mild = degrade_masks(target_masks[rows], generator=generator) & valid[rows]
        mild_result = _unattacked(mild, target_masks[rows], valid[rows], PerturbationOutcome.DEGRADED)
        result = _replace_rows(result, rows, mild_result)

        rows = morphological.nonzero()[:, 0]
        noise = morphology.perturb_masks(target_masks[rows], iou_thresholds=iou_thresholds[rows], generator=generator)
        noisy = noise.masks & valid[rows]
        morphed = _unattacked(noisy, target_masks[rows], valid[rows], PerturbationOutcome.MORPHOLOGICAL)
        return _replace_rows(result, rows, morphed)

    def _attack(
        self,
        decode: Decode,
        target_masks: Tensor,
        valid: Tensor,
        *,
        guides: Tensor,
        iou_thresholds: Tensor,
        generator: torch.Generator,
    ) -> PerturbationResult:
        return perturb_masks(
            decode,
            target_masks,
            guidance_masks(target_masks, guides),
            iou_thresholds=iou_thresholds,
            valid=valid,
            generator=generator,
            num_embeddings=self.num_embeddings,
            embed_dim=self.embed_dim,
            init_std=self.init_std,
            step_size=self.step_size,
            step_decay=self.step_decay,
            max_steps=self.max_steps,
            max_decays=self.max_decays,
            iou_margin=self.iou_margin,
            criterion=self.criterion,
        )


def _of_rows(decode: Decode, rows: Tensor) -> Decode:
    """The decoder as the masks `rows` ((A,) long) alone see it, counted from 0."""
    return lambda embeddings, active: decode(embeddings, rows[active])


def _unattacked(masks: Tensor, target_masks: Tensor, valid: Tensor, outcome: PerturbationOutcome) -> PerturbationResult:
    outcomes = torch.full((len(masks),), outcome, dtype=torch.long, device=masks.device)
    return PerturbationResult(masks, mask_iou(masks, target_masks, valid), torch.zeros_like(outcomes), outcomes)


def _replace_rows(result: PerturbationResult, rows: Tensor, part: PerturbationResult) -> PerturbationResult:
    """`result`, where the masks `rows` ((A,) long) have become those of `part`."""
    columns = (f.name for f in fields(PerturbationResult))
    return PerturbationResult(*(getattr(result, c).index_copy(0, rows, getattr(part, c)) for c in columns))
