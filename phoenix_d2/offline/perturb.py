"""Coarse masks by attack: the mistakes that a decoder makes on photographs, as wrong as asked.

For evaluation the decoder should be another one than the refiner under test, which knows its own mistakes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phoenix_d2.attack import attackable_decoder
from phoenix_d2.data.degrade import coarse_record
from phoenix_d2.data.images import read_image
from phoenix_d2.data.mask_json import Record, decode_segmentation
from phoenix_d2.offline.job import ImageTask
from phoenix_d2.ops.frames import Frame
from phoenix_d2.perturbation import NoiseSampler
from phoenix_d2.perturbation.degradations import iou_threshold
from phoenix_d2.perturbation.guidance import ALL_GUIDES
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.refiner import MaskRefiner
from phoenix_d2.structures import PerturbationOutcome, PerturbationResult

# masks attacked together share a draw: were they as many as fit the machine, noise would depend on it
_MASKS_AT_ONCE = 8


@dataclass(frozen=True)
class Attack:
    """A decoder to attack, and how.

    Attributes:
        refiner: whose decoder it is.
        sampler: how the attack works.
        dense_prompt: under attack, see `phoenix_d2.attack`.
    """

    refiner: PhoenixRefiner
    sampler: NoiseSampler
    dense_prompt: str

    def fingerprint(self) -> Record:
        """All that its noise depends on but what is attacked and by whose decoder, in plain values."""
        return {"sampler": asdict(self.sampler), "dense_prompt": self.dense_prompt}


def perturb_tasks(
    attack: Attack, tasks: Iterable[ImageTask], *, strength: float, seed: int = 0
) -> tuple[list[Record], list[PerturbationOutcome]]:
    """Degrade the masks of annotations by attacks on a decoder, as `degrade_annotations` does by other means.

    An image's noise depends on the seed, its id and its masks alone.

    Args:
        attack: its sampler's thresholds, guides and shares of other noise do not count: masks are led to all guides.
        tasks: of an annotation file, from `offline.job.plan_job`.
        strength: from 0, an IoU of 0.9, to 1, an IoU of 0.5.
        seed: of the noise.

    Returns:
        Records of a results file with score 1 and `gt_id`, in the order of the annotations, and how each came about.

    Raises:
        OSError: an image cannot be opened.
        ValueError: an image cannot be read, the strength is out of range, or there is no such dense prompt.
    """
    threshold = iou_threshold(strength)
    sampler = adversarial_alone(attack.sampler, iou_range=(threshold, threshold), guides=ALL_GUIDES)
    made = {}
    for task in tasks:
        image = torch.from_numpy(read_image(task.path)).permute(2, 0, 1)
        masks = [decode_segmentation(record["segmentation"], *task.size) for record in task.records]
        seed_of_image = zlib.crc32(f"{seed} {task.image_id}".encode())
        noisy, noise = perturb_image_masks(
            attack.refiner.refiner,
            image,
            torch.from_numpy(np.stack(masks)),
            sampler=sampler,
            dense_prompt=attack.dense_prompt,
            generator=torch.Generator().manual_seed(seed_of_image),
        )
        for place, record, mask, outcome in zip(
            task.places, task.records, noisy.cpu().numpy(), noise.outcome.tolist(), strict=True
        ):
            made[place] = coarse_record(record, mask), PerturbationOutcome(outcome)
    in_order = [made[place] for place in sorted(made)]
    return [record for record, _ in in_order], [outcome for _, outcome in in_order]


def adversarial_alone(sampler: NoiseSampler, **changes: Any) -> NoiseSampler:
    """The same attack without noise of other kinds.

    Args:
        sampler: whose attack it is.
        changes: other fields to change.
    """
    return replace(sampler, **{"morphology_prob": 0.0, "shapeless_prob": 0.0, "degradation_prob": 0.0} | changes)


@torch.no_grad()
def perturb_image_masks(
    refiner: MaskRefiner,
    image: Tensor,
    masks: Tensor,
    *,
    sampler: NoiseSampler,
    dense_prompt: str,
    generator: torch.Generator,
    known: dict[Frame, Tensor] | None = None,
) -> tuple[Tensor, PerturbationResult]:
    """Perturb the masks of one image, each in the frame that `MaskRefiner.refine` would refine it in.

    Args:
        refiner: whose decoder is attacked, and whose options say what is zoomed.
        image: (3, H, W) RGB in 0 to 255.
        masks: (N, H, W) bool targets.
        sampler: draws the noise.
        dense_prompt: under attack, see `phoenix_d2.attack`.
        generator: of all draws.
        known: embeddings of frames of this image, handed from call to call; that of the whole image is added.

    Returns:
        (N, H, W) bool noisy masks on the device of the refiner, and what the sampler says of them, in the
        low-resolution frame of each: outlines are as coarse as the decoder's. No noisy mask is empty: one that would
        be, is the target as it was. An empty target stays empty, with IoU 1 and the outcome `EXHAUSTED_ABOVE`.

    Raises:
        ValueError: there is no such dense prompt.
    """
    image, masks = image.to(refiner.device), masks.to(refiner.device)
    # unlike a refiner, an attack has no use for a mask that is left as it was
    options = replace(refiner.options, zoom_small=True)
    _, frames = refiner.plan(masks, options)
    noisy, result = masks.clone(), _untouched(len(masks), refiner)
    known = {} if known is None else known
    planned = sorted(frames)
    for start in range(0, len(planned), _MASKS_AT_ONCE):
        rows = torch.tensor(planned[start : start + _MASKS_AT_ONCE])
        chunk = [frames[row] for row in rows.tolist()]
        coverage = [frame.masks_to_low_res(masks[row, None]) for row, frame in zip(rows, chunk, strict=True)]
        targets = torch.cat(coverage)
        valid = torch.cat([frame.valid_mask(refiner.device) for frame in chunk])
        decode = None
        if sampler.attacks:
            embeddings = _encode(refiner, image, chunk, known)
            decode = attackable_decoder(refiner, embeddings, targets, valid=valid, dense_prompt=dense_prompt)
        noise = sampler(decode, targets >= 0.5, valid, generator=generator)
        for field in fields(PerturbationResult):
            getattr(result, field.name)[rows] = getattr(noise, field.name)
        for row, frame, low_res_mask in zip(rows, chunk, noise.masks, strict=True):
            noisy[row] = _to_image(low_res_mask, frame)
    vanished = ~noisy.flatten(1).any(1)
    noisy[vanished] = masks[vanished]
    return noisy, result


def _untouched(num_masks: int, refiner: MaskRefiner) -> PerturbationResult:
    """What is said of masks without a pixel to attack."""
    size, device = refiner.low_res_size, refiner.device
    steps = torch.zeros(num_masks, dtype=torch.long, device=device)
    return PerturbationResult(
        torch.zeros(num_masks, size, size, dtype=torch.bool, device=device),
        torch.ones(num_masks, device=device),
        steps,
        torch.full_like(steps, PerturbationOutcome.EXHAUSTED_ABOVE),
    )


def _encode(refiner: MaskRefiner, image: Tensor, frames: Sequence[Frame], known: dict[Frame, Tensor]) -> Tensor:
    """(n, C, h, w) embedding of each frame; equal ones are encoded once, and that of the whole image becomes known."""
    encoded = dict(known)
    if missing := [frame for frame in dict.fromkeys(frames) if frame not in known]:
        windows = torch.stack([refiner.preprocess(image, frame) for frame in missing])
        encoded.update(zip(missing, refiner.encode_image(windows), strict=True))
    # a window is one mask's, and thousands of them would fill the memory
    known.update({frame: embedding for frame, embedding in encoded.items() if frame.is_whole})
    return torch.stack([encoded[frame] for frame in frames])


def _to_image(mask: Tensor, frame: Frame) -> Tensor:
    """(H, W) bool of an (s, s) bool mask."""
    x0, y0, x1, y1 = frame.window
    full = torch.zeros(frame.image_size, dtype=torch.bool, device=mask.device)
    full[y0:y1, x0:x1] = frame.logits_to_window(mask[None].float() - 0.5)[0] > 0
    return full
