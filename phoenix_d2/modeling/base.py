"""What the two trainable architectures share: the batch, the random numbers, evaluation, checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from phoenix_d2.losses.criterion import RefinementCriterion
from phoenix_d2.modeling.build import amp_dtype, build_feature_cache, build_refiner
from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.prompting.simulated import simulate_prompts
from phoenix_d2.refiner import MaskRefiner
from phoenix_d2.sam.checkpoint import is_frozen
from phoenix_d2.sam.feature_cache import CachedEncoder, FeatureCache

MIN_OWN_IOU = 0.3
"""Least IoU with the target of an answer that serves as its noise: below, it is likely another object."""

_REFINER_PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")


@dataclass(frozen=True)
class TargetBatch:
    """The masks of a training batch, N over all its images.

    Attributes:
        image_embeddings: (B, C, h, w), with a graph if a part of the encoder is trained.
        image_index: (N,) long, the image of each mask.
        coverage: (N, s, s) float in [0, 1], share of each low-resolution pixel that the target covers.
        valid: (N, s, s) bool, pixels that are image and not padding.
        model_masks: (N, s, s) bool, a model's masks of the targets, empty where there is none.
    """

    image_embeddings: Tensor
    image_index: Tensor
    coverage: Tensor
    valid: Tensor
    model_masks: Tensor

    def repeat(self, times: int) -> TargetBatch:
        """The same images, every mask `times` times."""
        rows = torch.arange(len(self.image_index), device=self.image_index.device).repeat_interleave(times)
        return TargetBatch(
            self.image_embeddings, self.image_index[rows], self.coverage[rows], self.valid[rows], self.model_masks[rows]
        )

    @property
    def masks(self) -> Tensor:
        """(N, s, s) bool targets."""
        return self.coverage >= 0.5

    @property
    def embeddings(self) -> Tensor:
        """(N, C, h, w) image embedding of each mask."""
        return self.image_embeddings[self.image_index]


class RefinerArchitecture(nn.Module, ABC):
    """A `MaskRefiner` in Detectron2's training loop.

    In training, `forward` takes what `RefinementDatasetMapper` makes and returns losses; in evaluation
    it takes "image" and "coarse_instances" (see `CoarseMaskMapper`) and returns refined "instances".

    Args:
        refiner: what is trained.
        criterion: its losses.
        trainable: parts of the refiner that training changes.
        seed: of every random draw in training; draws depend on it, the iteration and the process alone.
        max_iter: iterations of the whole run, for schedules.
        model_noise_prob: probability that a model's mask, where there is one, is the noise.
        own_noise_prob: probability that the noise of a mask is the decoder's own answer to simulated prompts.
        amp_dtype: arithmetic of encoder and decoder in training; None is float32.
        feature_cache: keeps what the frozen part of the encoder makes of training images.

    Raises:
        ValueError: `trainable` is empty, or names what is no part of the refiner, or the encoder's features
            cannot be cached.
    """

    def __init__(
        self,
        *,
        refiner: MaskRefiner,
        criterion: RefinementCriterion,
        trainable: Sequence[str],
        seed: int,
        max_iter: int,
        model_noise_prob: float = 1.0,
        own_noise_prob: float = 0.0,
        amp_dtype: torch.dtype | None,
        feature_cache: FeatureCache | None = None,
    ) -> None:
        super().__init__()
        unknown = set(trainable) - set(_REFINER_PARTS)
        if unknown or not trainable:
            raise ValueError(
                f"MODEL.PHOENIX.TRAINABLE is {tuple(trainable)}: expected one or more of {', '.join(_REFINER_PARTS)}."
            )
        self.refiner = refiner
        self.criterion = criterion
        self.seed = seed
        self.max_iter = max_iter
        self.model_noise_prob = model_noise_prob
        self.own_noise_prob = own_noise_prob
        self.amp_dtype = amp_dtype
        for part in _REFINER_PARTS:
            for name, parameter in refiner.get_submodule(part).named_parameters():
                trained = part in trainable and not is_frozen(f"{part}.{name}", refiner.frozen)
                parameter.requires_grad_(trained)
        # no path leads from the loss to the embedding of absent masks when every sample has one, and
        # distributed training waits for every gradient
        refiner.prompt_encoder.no_mask_embed.requires_grad_(False)
        self.cached_encoder: CachedEncoder | None = None
        if feature_cache is not None:
            train_neck = any(parameter.requires_grad for parameter in refiner.image_encoder.parameters())
            self.cached_encoder = CachedEncoder(refiner, feature_cache, train_neck=train_neck)
        self._latest: tuple[list[Tensor], Tensor, dict[str, Tensor]] | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read what both architectures are made of but their losses."""
        return {
            "refiner": build_refiner(cfg),
            "trainable": tuple(cfg.MODEL.PHOENIX.TRAINABLE),
            "seed": max(cfg.SEED, 0),
            "max_iter": cfg.SOLVER.MAX_ITER,
            "model_noise_prob": cfg.MODEL.PHOENIX.PERTURBATION.MODEL_NOISE_PROB,
            "own_noise_prob": cfg.MODEL.PHOENIX.PERTURBATION.OWN_NOISE_PROB,
            "amp_dtype": amp_dtype(cfg),
            "feature_cache": build_feature_cache(cfg),
        }

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.refiner.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses by name in training; a list of {"instances": Instances} otherwise."""
        if self.training:
            return self.losses(batched_inputs)
        return [self._refine(inputs) for inputs in batched_inputs]

    @abstractmethod
    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The losses of a batch; diagnostics go to the event storage."""

    def generator(self) -> torch.Generator:
        """The source of all random numbers of this iteration and process: a resumed run draws the same."""
        # large odd factors keep the streams of neighbouring iterations and processes apart
        seed = self.seed + 1_000_003 * get_event_storage().iter + 7_919 * comm.get_rank()
        return torch.Generator().manual_seed(seed)

    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return get_event_storage().iter / max(self.max_iter, 1)

    def autocast(self) -> torch.autocast:
        """Mixed precision for encoder and decoder, if it is on."""
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    def load_batch(self, batched_inputs: list[dict[str, Any]]) -> TargetBatch:
        """Encode the images of a batch and bring its masks to the low-resolution frame."""
        coverage, valid, model_masks, image_index = [], [], [], []
        for i, inputs in enumerate(batched_inputs):
            instances: Instances = inputs["instances"]
            frame = self.refiner.frame(instances.image_size)
            coverage.append(frame.masks_to_low_res(instances.gt_masks.tensor.to(self.device)))
            valid.append(frame.valid_mask(self.device).expand_as(coverage[-1]))
            if instances.has("coarse_masks"):
                model_masks.append(frame.masks_to_low_res(instances.coarse_masks.tensor.to(self.device)) >= 0.5)
            else:
                model_masks.append(torch.zeros_like(valid[-1]))
            image_index += [i] * len(instances)
        return TargetBatch(
            self._encode([inputs["image"] for inputs in batched_inputs]),
            torch.tensor(image_index, dtype=torch.long, device=self.device),
            torch.cat(coverage),
            torch.cat(valid),
            torch.cat(model_masks),
        )

    @torch.no_grad()
    def model_noise(self, batch: TargetBatch, generator: torch.Generator) -> Tensor:
        """Noise that a model made (paper Table 4e): the batch's, or the answers of the decoder as it is now.

        What it answers to points or a box is wrong as masks of detectors and interactive models are: parts are missing,
        neighbours are taken in.

        Returns:
            (N, s, s) bool; empty where the dice, or an answer that misses its target, leave a mask to other noise.
        """
        chance = torch.rand(2, len(batch.image_index), generator=generator).to(self.device)
        masks = batch.model_masks & (chance[0] < self.model_noise_prob)[:, None, None]
        rows = ((chance[1] < self.own_noise_prob) & ~masks.flatten(1).any(1)).nonzero()[:, 0]
        if not len(rows):
            return masks
        targets, valid = batch.masks[rows], batch.valid[rows]
        prompts = simulate_prompts(targets, stride=self.refiner.stride, generator=generator)
        with self.autocast():
            prediction = self.refiner.decode(batch.embeddings[rows], prompts)
        # any of the candidates: the likely ones alone would be alike
        candidates = prediction.iou_predictions.shape[1]
        drawn = torch.randint(candidates, (len(rows),), generator=generator).to(self.device)
        answers = (prediction.select(drawn).low_res_logits[:, 0] > 0) & valid
        hits = mask_iou(answers, targets, valid) >= MIN_OWN_IOU
        masks[rows] = answers & hits[:, None, None]
        return masks

    def _encode(self, images: list[Tensor]) -> Tensor:
        """Embed (3, h, w) uint8 images, resized to the model input already, through the cache if there is one."""
        if self.cached_encoder is not None:
            with self.autocast():
                embeddings, num_found = self.cached_encoder.encode(images)
            get_event_storage().put_scalar("feature_cache_hits", num_found / len(images))
            return embeddings.float()
        frames = [self.refiner.frame((image.shape[1], image.shape[2])) for image in images]
        inputs = [self.refiner.preprocess(i.to(self.device), frame) for i, frame in zip(images, frames, strict=True)]
        with self.autocast():
            return self.refiner.encode_image(torch.stack(inputs)).float()

    def record(self, diagnostics: dict[str, Tensor]) -> None:
        """Put scalars into the event storage, in one transfer from the device."""
        values = torch.stack([value.float() for value in diagnostics.values()])
        for name, value in zip(diagnostics, values.tolist(), strict=True):
            get_event_storage().put_scalar(name, value)

    def keep_panel(self, batched_inputs: list[dict[str, Any]], batch: TargetBatch, **masks: Tensor) -> None:
        """Keep the first mask of a batch for `PanelWriter`, beside what became of it ((N, s, s) each, by name)."""
        if len(batch.image_index):
            images = [inputs["image"] for inputs in batched_inputs]
            named = {"target": batch.coverage} | masks
            self._latest = images, batch.image_index[0], {name: mask[0].detach() for name, mask in named.items()}

    @property
    def latest_panel(self) -> dict[str, Tensor]:
        """What `keep_panel` kept, "image" and (s, s) masks by name; nothing before the first mask."""
        if self._latest is None:
            return {}
        # which image it is, is asked of the device only where a panel is wanted: training need not wait for that
        images, index, masks = self._latest
        return {"image": images[int(index)]} | masks

    def _refine(self, inputs: dict[str, Any]) -> dict[str, Instances]:
        coarse: Instances = inputs["coarse_instances"]
        result = self.refiner.refine(inputs["image"], coarse.pred_masks)
        fields = {name: value for name, value in coarse.get_fields().items() if name != "pred_masks"}
        return {"instances": Instances(coarse.image_size, **fields, pred_masks=result.masks)}
