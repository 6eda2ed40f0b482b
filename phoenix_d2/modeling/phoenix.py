"""META_ARCH `Phoenix`: training of the refiner with adversarial noise and contrastive learning."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from phoenix_d2.attack import attackable_decoder, check_dense_prompt
from phoenix_d2.modeling.base import RefinerArchitecture, TargetBatch
from phoenix_d2.modeling.build import build_criterion, build_noise_sampler, build_teacher
from phoenix_d2.perturbation import NoiseSampler
from phoenix_d2.prompting import drop_visual_prompts
from phoenix_d2.pseudo_targets import PointGridTeacher
from phoenix_d2.structures import PerturbationOutcome, PerturbationResult


@META_ARCH_REGISTRY.register()
class Phoenix(RefinerArchitecture):
    """The paper's training: perturb the target, refine the noisy mask, compare the three.

    Args:
        noise_sampler: makes noisy masks of targets.
        teacher: finds the targets, in place of annotations (paper A.1); None trains towards annotations. It answers as
            the weights do that training starts from, and a checkpoint keeps it, so that a resumed run has the same.
        dense_prompt: dense prompt under attack: "none" or "target".
        drop_prob: probability that a sample's points and box are left out.
        cascade_prob: probability at the end of training that the refiner's own output replaces the noisy mask.
        cascade_depth: most passes that such an output is deep.

    The others are those of `RefinerArchitecture`.

    Raises:
        ValueError: `dense_prompt` is unknown, `cascade_depth` below 1, or a teacher's image encoder would be trained.
    """

    @configurable
    def __init__(
        self,
        *,
        noise_sampler: NoiseSampler,
        teacher: PointGridTeacher | None = None,
        dense_prompt: str = "none",
        drop_prob: float = 0.3,
        cascade_prob: float = 0.5,
        cascade_depth: int = 4,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        check_dense_prompt(dense_prompt)
        if cascade_depth < 1:
            raise ValueError(f"cascade_depth is {cascade_depth}: expected at least 1; cascade_prob=0 turns it off.")
        if teacher is not None and "image_encoder" in base["trainable"]:
            raise ValueError(
                "MODEL.PHOENIX.TRAINABLE holds image_encoder, but the decoder that finds pseudo targets knows only the "
                "features that training starts with: leave it out."
            )
        self.noise_sampler = noise_sampler
        self.teacher = teacher
        if teacher is not None:
            self.register_load_state_dict_pre_hook(_teach_as_loaded)
        self.dense_prompt = dense_prompt
        self.drop_prob = drop_prob
        self.cascade_prob = cascade_prob
        self.cascade_depth = cascade_depth

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read `MODEL.PHOENIX` and `MODEL.REFINER`."""
        node = cfg.MODEL.PHOENIX
        base = super().from_config(cfg)
        return base | {
            "criterion": build_criterion(cfg),
            "noise_sampler": build_noise_sampler(cfg),
            "teacher": build_teacher(cfg, base["refiner"]),
            "dense_prompt": node.PERTURBATION.DENSE_PROMPT,
            "drop_prob": node.PROMPT.DROP_PROB,
            "cascade_prob": node.CASCADE.MAX_PROB,
            "cascade_depth": node.CASCADE.MAX_DEPTH,
        }

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """See `RefinerArchitecture.losses`."""
        generator = self.generator()
        batch = self.load_batch(batched_inputs)
        if self.teacher is not None:
            batch = self.find_targets(batch, batched_inputs, generator)
        noise = self.perturb(batch, generator)
        noisy_masks = self._run_cascade(batch, noise.masks, generator)

        embeddings = batch.embeddings
        prompts = self.refiner.derive_prompts(noisy_masks.float(), embeddings, batch.valid)
        prompts = drop_visual_prompts(prompts, probability=self.drop_prob, generator=generator)
        with self.autocast():
            prediction = self.refiner.decode(embeddings, prompts)
        losses, diagnostics = self.criterion(prediction, batch.coverage, noisy_masks, batch.valid, generator=generator)
        self.record(diagnostics | _noise_diagnostics(noise))
        refined = prediction.multimask().best().low_res_logits[:, 0] > 0
        self.keep_panel(batched_inputs, batch, noisy=noisy_masks, refined=refined)
        return losses

    @torch.no_grad()
    def find_targets(
        self, batch: TargetBatch, batched_inputs: list[dict[str, Any]], generator: torch.Generator
    ) -> TargetBatch:
        """The images of a batch with the targets that the teacher finds in them."""
        assert self.teacher is not None
        targets, valid, image_index = [], [], []
        for i, inputs in enumerate(batched_inputs):
            frame = self.refiner.frame((inputs["image"].shape[1], inputs["image"].shape[2]))
            with self.autocast():
                masks = self.teacher(batch.image_embeddings[i, None], frame, generator=generator)
            targets.append(masks)
            valid.append(frame.valid_mask(self.device).expand_as(masks))
            image_index += [i] * len(masks)
        self.record({"pseudo_targets": torch.tensor(len(image_index) / len(batched_inputs))})
        masks = torch.cat(targets)
        index = torch.tensor(image_index, dtype=torch.long, device=self.device)
        return TargetBatch(batch.image_embeddings, index, masks.float(), torch.cat(valid), torch.zeros_like(masks))

    @torch.no_grad()
    def perturb(self, batch: TargetBatch, generator: torch.Generator) -> PerturbationResult:
        """Noisy masks of the targets of a batch; the decoder is attacked as it is now, in float32."""
        decode = attackable_decoder(
            self.refiner,
            batch.embeddings.detach(),
            batch.coverage,
            valid=batch.valid,
            dense_prompt=self.dense_prompt,
        )
        model_masks = self.model_noise(batch, generator)
        return self.noise_sampler(decode, batch.masks, batch.valid, model_masks=model_masks, generator=generator)

    @torch.no_grad()
    def _run_cascade(self, batch: TargetBatch, noisy_masks: Tensor, generator: torch.Generator) -> Tensor:
        """Replace some noisy masks by the refiner's own output for them, as the cascade will see at inference (B.3)."""
        n = len(noisy_masks)
        chosen = torch.rand(n, generator=generator) < self.cascade_prob * self.progress()
        depths = torch.randint(1, self.cascade_depth + 1, (n,), generator=generator) * chosen
        masks, embeddings = noisy_masks.clone(), batch.embeddings
        for depth in range(self.cascade_depth):
            rows = (depths > depth).nonzero()[:, 0].to(self.device)
            if len(rows) == 0:
                break
            own, valid = embeddings[rows], batch.valid[rows]
            prompts = self.refiner.derive_prompts(masks[rows].float(), own, valid)
            with self.autocast():
                best = self.refiner.decode_best(own, prompts)
            refined = (best.low_res_logits[:, 0] > 0) & valid
            kept = refined.flatten(1).any(1)[:, None, None]
            masks[rows] = torch.where(kept, refined, masks[rows])
        return masks


def _teach_as_loaded(model: Phoenix, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Weights to start from become the teacher's too; a checkpoint to resume brings the teacher along."""
    if not any(key.startswith(f"{prefix}teacher.") for key in state_dict):
        own = model.teacher.state_dict() if model.teacher is not None else {}
        loaded = {key: state_dict.get(f"{prefix}refiner.{key}") for key in own}
        state_dict.update({f"{prefix}teacher.{key}": value for key, value in loaded.items() if value is not None})


def _noise_diagnostics(noise: PerturbationResult) -> dict[str, Tensor]:
    # 0 rather than NaN of no masks
    n = max(len(noise.outcome), 1)
    attacked = noise.outcome < PerturbationOutcome.MORPHOLOGICAL
    shares = {f"noise_{outcome.name.lower()}": (noise.outcome == outcome).sum() / n for outcome in PerturbationOutcome}
    steps = (noise.num_steps * attacked).sum() / attacked.sum().clamp(min=1)
    return {"noise_iou": noise.iou.sum() / n, "noise_steps": steps, **shares}
