"""All losses of one decoder pass, weighted, and what the pass did to the masks."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from phoenix_d2.losses.contrastive import InterForm, cmrl_loss
from phoenix_d2.losses.regions import RefinementRegions, refinement_regions
from phoenix_d2.losses.segmentation import dice_loss, focal_loss, iou_regression_loss
from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.structures import MaskPrediction


class RefinementCriterion(nn.Module):
    """L = L_SAM + lambda_CMRL * L_CMRL (paper 3.4, C.1.5).

    As in SAM, only that multimask candidate is trained whose mask loss is least; the single-mask
    candidate beside it, because the perturbation decodes it. The predicted IoU of every candidate is
    trained, since inference compares them. Defaults are the paper's, but for those called ours.

    Args:
        projector: maps (..., C) features into the space of CMRL. It is not run where CMRL is
            off (weight 0 or no noisy masks): pass `nn.Identity()` there, since distributed
            training expects every trainable parameter in the graph.
        focal_weight: of the focal loss.
        dice_weight: of the Dice loss.
        iou_weight: of the predicted-IoU regression; ours.
        cmrl_weight: lambda_CMRL; 0 switches CMRL off.
        intra_weight: of CMRL's intra-class term, Eq. (4).
        inter_weight: of CMRL's inter-class term, Eq. (4).
        self_weight: of CMRL's self-improvement term, Eq. (4).
        temperature: of the contrastive similarities; ours.
        num_samples: most pixels drawn from a region.
        num_self_samples: most pixels drawn from a region in the self-improvement term.
        inter_form: "logsumexp" (Eq. 2) or "softplus" (Algorithm 2).
        count_new_errors: count the refiner's own errors as failures; ours.
        train_single_mask: train the single-mask candidate too; ours.

    Raises:
        ValueError: `inter_form` is unknown, or `temperature` is not positive.
    """

    def __init__(
        self,
        *,
        projector: nn.Module,
        focal_weight: float = 20.0,
        dice_weight: float = 1.0,
        iou_weight: float = 1.0,
        cmrl_weight: float = 1e-3,
        intra_weight: float = 0.4,
        inter_weight: float = 0.4,
        self_weight: float = 0.2,
        temperature: float = 0.07,
        num_samples: int = 256,
        num_self_samples: int = 512,
        inter_form: InterForm = "logsumexp",
        count_new_errors: bool = False,
        train_single_mask: bool = True,
    ) -> None:
        super().__init__()
        if inter_form not in get_args(InterForm):
            raise ValueError(f"Unknown form {inter_form!r} of the inter-class term: use one of {get_args(InterForm)}.")
        if temperature <= 0:
            raise ValueError(f"Contrastive temperature {temperature} must be positive: try 0.07.")
        self.projector = projector
        self.focal_weight = focal_weight
        self.dice_weight = dice_weight
        self.iou_weight = iou_weight
        self.cmrl_weight = cmrl_weight
        self.intra_weight = intra_weight
        self.inter_weight = inter_weight
        self.self_weight = self_weight
        self.temperature = temperature
        self.num_samples = num_samples
        self.num_self_samples = num_self_samples
        self.inter_form: InterForm = inter_form
        self.count_new_errors = count_new_errors
        self.train_single_mask = train_single_mask

    def forward(
        self,
        prediction: MaskPrediction,
        targets: Tensor,
        noisy_masks: Tensor,
        valid: Tensor,
        *,
        generator: torch.Generator,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Judge one decoder pass; in float32, also under autocast.

        Args:
            prediction: all candidates of N masks in SAM's order: the single-mask candidate, then the
                multimask ones.
            targets: (N, s, s) float in [0, 1], share of each pixel that the target covers.
            noisy_masks: (N, s, s) bool, what the decoder was given; empty where it was given no mask.
            valid: (N, s, s) or (1, s, s) bool, pixels that are image and not padding.
            generator: draws the pixels of CMRL.

        Returns:
            The losses, scalars already weighted, to be added up: `loss_focal`, `loss_dice`, `loss_iou`;
            `loss_prompt_iou` if the decoder predicts the IoU of noisy masks; and with CMRL
            `loss_cmrl_intra`, `loss_cmrl_inter`, `loss_cmrl_self`.
            The diagnostics, detached scalars: `iou_refined` of the candidate that inference would
            select, `iou_noisy`, `iou_gain` (refined minus noisy) and the share of valid pixels in each
            region, `region_<name>`.
        """
        assert prediction.low_res_logits.shape[1] > 1, "the multimask candidates are missing"
        with torch.autocast(targets.device.type, enabled=False):
            prediction = prediction.float()
            target_masks = targets >= 0.5
            losses, best = self._mask_losses(prediction, targets, valid)
            diagnostics = _iou_diagnostics(prediction, target_masks, noisy_masks, valid)
            predicted = prediction.prompt_iou_predictions
            if predicted is not None:
                error = (predicted - mask_iou(noisy_masks, target_masks, valid)).square()
                losses["loss_prompt_iou"] = self.iou_weight * _mean(error)
            refined_masks = prediction.select(best).low_res_logits[:, 0] > 0
            regions = refinement_regions(
                target_masks, noisy_masks, refined_masks, valid, count_new_errors=self.count_new_errors
            )
            diagnostics |= {f"region_{name}": _mean(share) for name, share in regions.fractions(valid).items()}
            if self.cmrl_weight > 0:
                losses |= self._contrastive_losses(prediction.features, regions, valid, generator)
        return losses, diagnostics

    def _mask_losses(
        self, prediction: MaskPrediction, targets: Tensor, valid: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of L_SAM, and which multimask candidate, (N,) long, has the least mask loss."""
        logits = prediction.low_res_logits
        focal = self.focal_weight * focal_loss(logits, targets, valid)
        dice = self.dice_weight * dice_loss(logits, targets, valid)
        iou = self.iou_weight * iou_regression_loss(prediction.iou_predictions, logits, targets, valid)
        best = 1 + (focal + dice)[:, 1:].argmin(dim=1)
        trained = best[:, None]
        if self.train_single_mask:
            trained = torch.cat([torch.zeros_like(trained), trained], dim=1)
        losses = {
            "loss_focal": _mean(focal.gather(1, trained)),
            "loss_dice": _mean(dice.gather(1, trained)),
            "loss_iou": _mean(iou),
        }
        return losses, best

    def _contrastive_losses(
        self, features: Tensor, regions: RefinementRegions, valid: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        terms = cmrl_loss(
            features,
            regions,
            valid,
            projector=self.projector,
            temperature=self.temperature,
            num_samples=self.num_samples,
            num_self_samples=self.num_self_samples,
            inter_form=self.inter_form,
            generator=generator,
        )
        return {
            "loss_cmrl_intra": self.cmrl_weight * self.intra_weight * terms.intra,
            "loss_cmrl_inter": self.cmrl_weight * self.inter_weight * terms.inter,
            "loss_cmrl_self": self.cmrl_weight * self.self_weight * terms.self_improvement,
        }


def _iou_diagnostics(
    prediction: MaskPrediction, target_masks: Tensor, noisy_masks: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    """Mean IoU with the target of the mask that inference selects, and of the noisy mask that it came from."""
    selected = 1 + prediction.iou_predictions[:, 1:].argmax(dim=1)
    refined = _mean(mask_iou(prediction.select(selected).low_res_logits[:, 0] > 0, target_masks, valid))
    noisy = _mean(mask_iou(noisy_masks, target_masks, valid))
    return {"iou_noisy": noisy, "iou_refined": refined, "iou_gain": refined - noisy}


def _mean(values: Tensor) -> Tensor:
    """The mean, and 0 rather than NaN of nothing."""
    return values.sum() / max(values.numel(), 1)
