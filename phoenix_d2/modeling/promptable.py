"""META_ARCH `PromptableDecoder`: pre-training of a decoder that no SAM checkpoint exists for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from phoenix_d2.modeling.base import RefinerArchitecture, TargetBatch
from phoenix_d2.modeling.build import build_criterion, build_noise_sampler
from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.perturbation import NoiseSampler
from phoenix_d2.prompting import drop_visual_prompts
from phoenix_d2.prompting.simulated import draw_pixels, jittered_boxes, pixel_centres
from phoenix_d2.structures import MaskPrediction, PointLabel, Prompts


@META_ARCH_REGISTRY.register()
class PromptableDecoder(RefinerArchitecture):
    """Segment-anything's own training scheme, shortened.

    The first pass sees a point on the object, its jittered box, or a coarse mask of it with what the
    prompter derives; each further pass sees the mask of the pass before and one point more, drawn from
    what that mask got wrong. Every pass is trained. Ours: the coarse mask among the first prompts, so
    that the decoder learns early to read masks that are wrong.

    Args:
        noise_sampler: makes the coarse masks; it has no decoder to attack.
        rounds: passes a sample.
        prompt_probs: of the first prompt: point, box, coarse mask.
        drop_prob: probability that points and box of a coarse mask are left out.
        prompts_per_mask: first prompts a mask, each a sample of its own.

    The others are those of `RefinerArchitecture`.

    Raises:
        ValueError: `rounds` or `prompts_per_mask` is below 1, or `prompt_probs` are not three weights.
    """

    @configurable
    def __init__(
        self,
        *,
        noise_sampler: NoiseSampler,
        rounds: int = 3,
        prompt_probs: Sequence[float] = (0.25, 0.25, 0.5),
        drop_prob: float = 0.3,
        prompts_per_mask: int = 1,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if len(prompt_probs) != 3 or min(prompt_probs) < 0 or sum(prompt_probs) <= 0:
            raise ValueError(f"prompt_probs is {prompt_probs}: expected three weights, for point, box and coarse mask.")
        if rounds < 1 or prompts_per_mask < 1:
            raise ValueError(f"rounds is {rounds} and prompts_per_mask {prompts_per_mask}: expected at least 1 each.")
        # here, and only here, some samples have no mask prompt
        self.refiner.prompt_encoder.no_mask_embed.requires_grad_("prompt_encoder" in base["trainable"])
        self.noise_sampler = noise_sampler
        self.rounds = rounds
        self.prompt_probs = torch.tensor(prompt_probs)
        self.drop_prob = drop_prob
        self.prompts_per_mask = prompts_per_mask

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read `MODEL.PHOENIX` and `MODEL.REFINER`."""
        node = cfg.MODEL.PHOENIX
        if node.TARGET != "annotation":
            raise ValueError(
                f"MODEL.PHOENIX.TARGET is {node.TARGET!r}, but a decoder that is yet to be trained finds no targets: "
                "pre-training wants annotations."
            )
        return super().from_config(cfg) | {
            "criterion": build_criterion(cfg, cmrl=False),
            # there is nothing worth attacking yet
            "noise_sampler": build_noise_sampler(
                cfg, morphology_prob=1 - node.PERTURBATION.SHAPELESS_PROB - node.PERTURBATION.DEGRADATION_PROB
            ),
            "rounds": node.PRETRAIN.ROUNDS,
            "prompt_probs": tuple(node.PRETRAIN.PROMPT_PROBS),
            "drop_prob": node.PROMPT.DROP_PROB,
            "prompts_per_mask": node.PRETRAIN.PROMPTS_PER_MASK,
        }

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """See `RefinerArchitecture.losses`."""
        generator = self.generator()
        batch = self.load_batch(batched_inputs).repeat(self.prompts_per_mask)
        prompts, has_mask, coarse_masks = self._first_prompts(batch, generator)
        # of a sample without mask prompt, none of the target is given: an IoU of 0
        prompt_masks = coarse_masks & has_mask[:, None, None]
        total: dict[str, Tensor] = {}
        for turn in range(self.rounds):
            prediction = self._decode(batch, prompts, has_mask)
            losses, diagnostics = self.criterion(
                prediction, batch.coverage, prompt_masks, batch.valid, generator=generator
            )
            total = {name: total.get(name, 0) + loss / self.rounds for name, loss in losses.items()}
            self.record({f"iou_round_{turn}": diagnostics["iou_refined"]})
            masks = prediction.multimask().best().low_res_logits[:, 0].detach().float()
            if turn == 0:
                self.record(_gain(masks > 0, coarse_masks, batch, has_mask))
            if turn + 1 < self.rounds:
                prompts = self._correct(prompts, masks, batch, generator)
                has_mask, prompt_masks = torch.ones_like(has_mask), masks > 0
        self.keep_panel(batched_inputs, batch, refined=masks > 0)
        return total

    def _decode(self, batch: TargetBatch, prompts: Prompts, has_mask: Tensor) -> MaskPrediction:
        """Decode prompts of which only those in `has_mask` ((N,) bool) have a mask prompt."""
        with self.autocast():
            sparse, dense = self.refiner.prompt_encoder.encode(prompts)
            absent = self.refiner.prompt_encoder.no_mask_embeddings(len(prompts))
            dense = torch.where(has_mask[:, None, None, None], dense, absent)
            return self.refiner.decode_embeddings(batch.embeddings, sparse, dense)

    def _first_prompts(self, batch: TargetBatch, generator: torch.Generator) -> tuple[Prompts, Tensor, Tensor]:
        """Simulated first prompts, (N,) bool which of them have a mask prompt, and (N, s, s) bool coarse masks."""
        kind = torch.multinomial(self.prompt_probs.expand(len(batch.image_index), 3), 1, generator=generator)
        is_point, is_box, is_mask = (kind.to(self.device) == k for k in range(3))
        model_masks = self.model_noise(batch, generator)
        noise = self.noise_sampler(None, batch.masks, batch.valid, model_masks=model_masks, generator=generator)
        derived = self.refiner.derive_prompts(noise.masks.float(), batch.embeddings, batch.valid)
        derived = drop_visual_prompts(derived, probability=self.drop_prob, generator=generator)

        stride = self.refiner.stride
        points = pixel_centres(draw_pixels(batch.masks, generator), batch.masks, stride)
        boxes = jittered_boxes(batch.masks, stride=stride, generator=generator)
        coords = torch.cat([points, boxes, derived.point_coords], dim=1)
        corners = torch.tensor([PointLabel.BOX_TOP_LEFT, PointLabel.BOX_BOTTOM_RIGHT], device=self.device)
        labels = torch.cat(
            [
                torch.where(is_point, int(PointLabel.FOREGROUND), int(PointLabel.PADDING)),
                torch.where(is_box, corners, int(PointLabel.PADDING)),
                torch.where(is_mask, derived.point_labels, int(PointLabel.PADDING)),
            ],
            dim=1,
        )
        return Prompts(coords, labels, derived.mask_logits), is_mask[:, 0], noise.masks

    def _correct(self, prompts: Prompts, logits: Tensor, batch: TargetBatch, generator: torch.Generator) -> Prompts:
        """The mask so far as mask prompt, and one more point where it is wrong."""
        wrong = ((logits > 0) != batch.masks) & batch.valid
        anywhere = wrong.flatten(1).any(1)[:, None, None]
        pixels = draw_pixels(torch.where(anywhere, wrong, batch.masks), generator)
        # a missed pixel becomes a foreground point, an invented one a background point
        labels = batch.masks.flatten(1).gather(1, pixels).long()
        scale = self.refiner.prompter.mask_scale
        return Prompts(
            torch.cat([prompts.point_coords, pixel_centres(pixels, batch.masks, self.refiner.stride)], dim=1),
            torch.cat([prompts.point_labels, labels], dim=1),
            logits.clamp(-scale, scale)[:, None],
        )


def _gain(masks: Tensor, coarse_masks: Tensor, batch: TargetBatch, has_mask: Tensor) -> dict[str, Tensor]:
    """Mean IoU of the coarse masks that were prompted with, and what the first pass added to it."""
    count = has_mask.sum().clamp(min=1)
    coarse = (mask_iou(coarse_masks, batch.masks, batch.valid) * has_mask).sum() / count
    refined = (mask_iou(masks, batch.masks, batch.valid) * has_mask).sum() / count
    return {"iou_noisy": coarse, "iou_gain": refined - coarse}
