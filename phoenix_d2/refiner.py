"""The refiner: encode an image, prompt with coarse masks, decode, and again.

The only place where the steps are composed; training, the detector hook and the offline tools all
come here. Shape letters as in `structures`; S is the side of the model input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phoenix_d2.gate import EVIDENCE, RefinementGate, edge_strength, measure_evidence, within_thresholds
from phoenix_d2.ops.frames import Frame
from phoenix_d2.ops.masks import mask_iou, masks_to_boxes
from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.sam.decoder import MaskDecoder
from phoenix_d2.sam.prompt_encoder import PromptEncoder
from phoenix_d2.structures import MaskPrediction, PointLabel, Prompts, RefinementResult, RefinementStatus

# a mask of fewer low-resolution pixels says too little to be prompted with
_MIN_LOW_RES_AREA = 16

GateMode: TypeAlias = Literal["auto", "calibrated", "fixed", "off"]
Candidate: TypeAlias = Literal["best", "mean"]


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """How `MaskRefiner.refine` works through the masks of an image.

    Attributes:
        num_iters: passes of the cascade; each pass' mask is the next one's input (paper B.3).
        candidate: what a pass makes of the decoder's candidates: "best", the multimask one of the highest predicted IoU
            (paper B.3), or "mean", the mean logits of all, which bets on none where the prediction is unsure.
        chunk_size: masks decoded together, which bounds the memory; 8 is best on a CPU, a GPU takes more.
        zoom_small: refine masks that are too small for the low-resolution frame (under 16 of its
            pixels) on a window of their own around them; off, they are kept as they were.
        zoom_below: also zoom every mask whose window is smaller than this share of the image's long
            side. Finer outlines for an encoder pass a mask; 0 is off.
        zoom_context: side of a window in units of the mask's box.
        gate: which refined masks replace the coarse ones. "calibrated": those that the refiner's gate expects to be
            better; "fixed": those within the two thresholds below; "off": all. "auto": calibrated if the refiner has
            a gate, else off.
        gate_min_iou: least predicted IoU that the fixed gate accepts.
        gate_min_overlap: least IoU of refined and coarse mask that the fixed gate accepts.

    Raises:
        ValueError: a value is out of range.
    """

    num_iters: int = 5
    candidate: Candidate = "best"
    chunk_size: int = 8
    zoom_small: bool = True
    zoom_below: float = 0.0
    zoom_context: float = 2.0
    gate: GateMode = "auto"
    gate_min_iou: float = 0.5
    gate_min_overlap: float = 0.5

    def __post_init__(self) -> None:
        if self.num_iters < 1 or self.chunk_size < 1:
            raise ValueError(f"num_iters {self.num_iters} and chunk_size {self.chunk_size} must be at least 1.")
        if self.candidate not in get_args(Candidate):
            raise ValueError(f"Unknown candidate {self.candidate!r}: expected one of {', '.join(get_args(Candidate))}.")
        if not self.zoom_context > 1:
            raise ValueError(f"zoom_context must be above 1, the box itself, got {self.zoom_context}.")
        if self.gate not in get_args(GateMode):
            raise ValueError(f"Unknown gate {self.gate!r}: expected one of {', '.join(get_args(GateMode))}.")
        if not (0 <= self.gate_min_iou <= 1 and 0 <= self.gate_min_overlap <= 1):
            raise ValueError(
                f"gate_min_iou {self.gate_min_iou} and gate_min_overlap {self.gate_min_overlap} must be from 0 to 1."
            )


@dataclass(frozen=True)
class _Cues:
    """Points and boxes that the user gave for the masks of an image, in the image frame (paper A.2)."""

    points: Tensor | None
    point_labels: Tensor | None
    boxes: Tensor | None

    def in_frames(self, rows: Tensor, frames: Sequence[Frame]) -> _Cues:
        """The cues of some masks in model-input coordinates, each mask's in its own frame."""

        def to_input(coords: Tensor) -> Tensor:
            return torch.stack([frame.coords_to_input(c) for c, frame in zip(coords[rows], frames, strict=True)])

        return _Cues(
            None if self.points is None else to_input(self.points),
            None if self.point_labels is None else self.point_labels[rows],
            None if self.boxes is None else to_input(self.boxes.view(-1, 2, 2)).flatten(1),
        )

    def around(self, boxes: Tensor) -> Tensor:
        """(N, 4) boxes of whole pixels that hold the masks' (N, 4) `boxes` and what the user gave for each."""
        corners = [boxes.view(-1, 2, 2).float()]
        if self.boxes is not None:
            corners.append(self.boxes.view(-1, 2, 2))
        if self.points is not None and self.point_labels is not None:
            is_point = (self.point_labels != PointLabel.PADDING)[..., None]
            corners.append(torch.where(is_point, self.points, corners[0][:, :1]))
        extent = torch.cat(corners, dim=1)
        return torch.cat([extent.amin(1).floor(), extent.amax(1).ceil()], dim=1)


@dataclass(frozen=True)
class _Passes:
    """What T passes made of n masks.

    Attributes:
        logits: (n, s, s) float, of the last pass.
        ious: (n, T) float, predicted IoU of each pass.
        changes: (n, T) float, IoU of each pass' mask with the one before.
        coarse_iou: (n,) float, predicted IoU of the coarse masks; NaN from a decoder that makes no such prediction.
        unanimity: (n,) float, of the last pass' candidates, see `gate.EVIDENCE`.
    """

    logits: Tensor
    ious: Tensor
    changes: Tensor
    coarse_iou: Tensor
    unanimity: Tensor


class MaskRefiner(nn.Module):
    """SAM's encoder and decoder, prompted by coarse masks.

    Args:
        image_encoder: (B, 3, S, S) -> (B, C, S / 16, S / 16).
        prompt_encoder: embeds `Prompts`; its `input_image_size` tells S.
        mask_decoder: predicts mask candidates.
        prompter: turns coarse masks into `Prompts`.
        options: how `refine` works unless told otherwise.
        encoder_name: entry of the encoder registry, stored in checkpoints.
        pixel_mean, pixel_std: of RGB values in 0 to 255.
        frozen: submodules of the encoder that are never trained, "" for all of it.
        gate: calibrated for these weights, decides which refined masks are accepted; None where there is none.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        image_encoder: nn.Module,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        prompter: CoarseMaskPrompter,
        options: RefineOptions,
        encoder_name: str,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        frozen: Sequence[str] = ("",),
        gate: RefinementGate | None = None,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.prompter = prompter
        self.options = options
        self.encoder_name = encoder_name
        self.frozen = tuple(frozen)
        self.gate = gate
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)
        for name in self.frozen:
            image_encoder.get_submodule(name).requires_grad_(False)

    @property
    def input_size(self) -> int:
        """Side S of the square model input in pixels."""
        return int(self.prompt_encoder.input_image_size[0])

    @property
    def low_res_size(self) -> int:
        """Side s of the square low-resolution frame."""
        return int(self.prompt_encoder.mask_input_size[0])

    @property
    def stride(self) -> int:
        """Model-input pixels a low-resolution pixel."""
        return self.input_size // self.low_res_size

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.pixel_mean.device

    def frame(self, image_size: tuple[int, int]) -> Frame:
        """The frame of a whole image of (height, width) pixels."""
        return Frame.whole(image_size, input_size=self.input_size, low_res_size=self.low_res_size)

    def preprocess(self, image: Tensor, frame: Frame) -> Tensor:
        """Resize, normalise and pad the window of an image.

        Args:
            image: (3, H, W) RGB in 0 to 255, uint8 or float.
            frame: of that image.

        Returns:
            (3, S, S) float.
        """
        resized = (frame.image_to_input(image).to(self.pixel_mean) - self.pixel_mean) / self.pixel_std
        height, width = resized.shape[-2:]
        return F.pad(resized, (0, self.input_size - width, 0, self.input_size - height))

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed preprocessed images: (B, 3, S, S) -> (B, C, S / 16, S / 16)."""
        embeddings: Tensor = self.image_encoder(images)
        return embeddings

    def decode(self, image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
        """Predict all candidates (the single mask first, then the multimask ones) of N prompted masks.

        Args:
            image_embeddings: (N, C, h, w), or (1, C, h, w) when all masks lie in one image.
            prompts: of N masks, in the frame of the embeddings.
        """
        sparse, dense = self.prompt_encoder.encode(prompts)
        return self.decode_embeddings(image_embeddings, sparse, dense)

    def decode_embeddings(self, image_embeddings: Tensor, sparse: Tensor, dense: Tensor) -> MaskPrediction:
        """`decode` from (N, P, C) sparse and (N, C, h, w) dense prompt embeddings."""
        image_pe = self.prompt_encoder.get_dense_pe()
        prediction: MaskPrediction = self.mask_decoder.decode(image_embeddings, image_pe, sparse, dense)
        return prediction

    def decode_best(self, image_embeddings: Tensor, prompts: Prompts) -> MaskPrediction:
        """`decode`, keeping the multimask candidate of the highest predicted IoU (paper B.3)."""
        return self.decode(image_embeddings, prompts).multimask().best()

    @torch.no_grad()
    def refine(
        self,
        image: Tensor,
        coarse_masks: Tensor,
        *,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        options: RefineOptions | None = None,
    ) -> RefinementResult:
        """Refine the masks of one image.

        A mask's result depends on the image and that mask alone, never on the other masks.

        Args:
            image: (3, H, W) RGB in 0 to 255, uint8 or float.
            coarse_masks: (N, H, W) bool.
            points: (N, K, 2) continuous (x, y) image coordinates that replace the points derived from
                the masks in every pass.
            point_labels: (N, K), 1 on the object, 0 off it, -1 for no point; all 1 when None.
            boxes: (N, 4) XYXY in image pixels, exclusive maxima, that replace the derived boxes.
            options: those of the refiner when None.

        Raises:
            ValueError: masks, points, labels or boxes do not fit the image or one another, or a calibrated gate is
                asked of a refiner without one.
        """
        options = options or self.options
        _check_inputs(image, coarse_masks, points, point_labels, boxes)
        if options.gate == "calibrated" and self.gate is None:
            raise ValueError(
                "The gate 'calibrated' was asked, but this refiner has none: calibrate one (tools/calibrate_gate.py), "
                "or choose 'auto', 'fixed' or 'off'."
            )
        image, coarse_masks = image.to(self.device), coarse_masks.to(self.device)
        if points is not None and point_labels is None:
            point_labels = torch.ones(points.shape[:2], dtype=torch.long)
        cues = _Cues(
            None if points is None else points.to(self.device, torch.float32),
            None if point_labels is None else point_labels.to(self.device),
            None if boxes is None else boxes.to(self.device, torch.float32),
        )

        n, size = len(coarse_masks), self.low_res_size
        logits = torch.zeros(n, size, size, device=self.device)
        iou_trace = torch.zeros(n, options.num_iters, device=self.device)
        change_trace = torch.ones_like(iou_trace)
        coarse_iou = torch.full((n,), torch.nan, device=self.device)
        evidence = torch.full((n, len(EVIDENCE)), torch.nan, device=self.device)
        masks = coarse_masks.clone()
        status, frames = self._plan(coarse_masks, cues, options)

        whole: tuple[Tensor, Tensor] | None = None
        for chunk, chunk_frames in _chunks(frames, options.chunk_size):
            if not _is_whole(chunk_frames[0]):
                embeddings, edges = self._encode_windows(image, chunk_frames)
            else:
                whole = whole or self._encode_windows(image, chunk_frames[:1])
                embeddings, edges = whole
            rows = torch.tensor(chunk, device=self.device)
            soft_masks = torch.cat(
                [f.masks_to_low_res(coarse_masks[i, None]) for i, f in zip(chunk, chunk_frames, strict=True)]
            )
            valid = torch.cat([frame.valid_mask(self.device) for frame in chunk_frames])
            passes = self._cascade(embeddings, soft_masks, valid, cues.in_frames(rows, chunk_frames), options)
            logits[rows], iou_trace[rows], change_trace[rows] = passes.logits, passes.ious, passes.changes
            coarse_iou[rows] = passes.coarse_iou
            evidence[rows] = measure_evidence(
                soft_masks >= 0.5,
                passes.logits,
                edges,
                valid=valid,
                iou_predictions=passes.ious[:, -1],
                coarse_iou_predictions=passes.coarse_iou,
                change_trace=passes.changes,
                unanimity=passes.unanimity,
            )
            for i, frame in zip(chunk, chunk_frames, strict=True):
                x0, y0, x1, y1 = frame.window
                masks[i] = False
                masks[i, y0:y1, x0:x1] = frame.logits_to_window(logits[i, None])[0] > 0

        vanished = (status == RefinementStatus.REFINED) & ~masks.flatten(1).any(1)
        masks[vanished] = coarse_masks[vanished]
        status[vanished] = int(RefinementStatus.KEPT_VANISHED)
        logits[vanished], iou_trace[vanished], change_trace[vanished] = 0.0, 0.0, 1.0

        refined = status == RefinementStatus.REFINED
        accepted, predicted_gain = self._judge(evidence, options)
        rejected = refined & ~accepted
        masks[rejected] = coarse_masks[rejected]
        status[rejected] = int(RefinementStatus.KEPT_REJECTED)
        return RefinementResult(
            masks=masks,
            iou_predictions=iou_trace[:, -1].clone(),
            coarse_iou_predictions=coarse_iou,
            low_res_logits=logits,
            status=status,
            iou_trace=iou_trace,
            change_trace=change_trace,
            evidence=evidence,
            predicted_gain=predicted_gain.masked_fill(~refined, torch.nan),
        )

    def _judge(self, evidence: Tensor, options: RefineOptions) -> tuple[Tensor, Tensor]:
        """Which refined masks the gate accepts, (N,) bool, and the gains that it predicts, (N,) float."""
        unknown = torch.full_like(evidence[:, 0], torch.nan)
        if options.gate == "fixed":
            thresholds = {"min_iou": options.gate_min_iou, "min_overlap": options.gate_min_overlap}
            return within_thresholds(evidence, **thresholds), unknown
        if options.gate == "off" or self.gate is None:
            return torch.ones_like(unknown, dtype=torch.bool), unknown
        predicted_gain = self.gate.predict_gain(evidence)
        return self.gate.accepts(predicted_gain), predicted_gain

    def _encode_windows(self, image: Tensor, frames: Sequence[Frame]) -> tuple[Tensor, Tensor]:
        """Windows of an image as (n, C, S / 16, S / 16) embeddings and (n, s, s) edge strengths."""
        windows = torch.stack([self.preprocess(image, frame) for frame in frames])
        return self.encode_image(windows), edge_strength(F.avg_pool2d(windows, self.stride))

    def plan(self, masks: Tensor, options: RefineOptions | None = None) -> tuple[Tensor, dict[int, Frame]]:
        """What `refine` does with the (N, H, W) bool masks of an image.

        Args:
            masks: (N, H, W) bool.
            options: those of the refiner when None.

        Returns:
            (N,) long, values of `RefinementStatus`, and by index the frames of those that are to be refined.
        """
        return self._plan(masks, _Cues(None, None, None), options or self.options)

    def _plan(self, masks: Tensor, cues: _Cues, options: RefineOptions) -> tuple[Tensor, dict[int, Frame]]:
        whole = self.frame((masks.shape[1], masks.shape[2]))
        boxes = masks_to_boxes(masks)
        # one by one: summing bool masks at once would first spread each pixel over eight bytes
        areas = torch.stack([mask.count_nonzero() for mask in masks]) if len(masks) else masks.new_zeros(0)
        low_res_area = areas * (self.low_res_size / max(whole.window_size)) ** 2
        small = low_res_area < _MIN_LOW_RES_AREA
        status = torch.full((len(masks),), int(RefinementStatus.REFINED), device=masks.device)
        if not options.zoom_small:
            status[small] = int(RefinementStatus.KEPT_SMALL)
        status[boxes[:, 2] == 0] = int(RefinementStatus.KEPT_EMPTY)

        frames = {}
        plan = zip(status.tolist(), small.tolist(), cues.around(boxes).tolist(), strict=True)
        for i, (mask_status, is_small, box) in enumerate(plan):
            if mask_status == RefinementStatus.REFINED:
                x0, y0, x1, y1 = window = _zoom_window(whole.image_size, box, options.zoom_context)
                zoom = is_small or max(x1 - x0, y1 - y0) < options.zoom_below * max(whole.image_size)
                frames[i] = replace(whole, window=window) if zoom else whole
        return status, frames

    def _cascade(
        self, image_embeddings: Tensor, soft_masks: Tensor, valid: Tensor, cues: _Cues, options: RefineOptions
    ) -> _Passes:
        """Refine (n, s, s) soft masks pass by pass, all in the low-resolution frame.

        A mask that vanishes stays what it was in the pass before; the logits of one that the first pass erased are 0.
        """
        logits = torch.zeros_like(soft_masks)
        unanimity = torch.ones_like(soft_masks[:, 0, 0])
        ious: list[Tensor] = []
        changes: list[Tensor] = []
        coarse_iou: Tensor | None = None
        alive = torch.ones(len(soft_masks), dtype=torch.bool, device=soft_masks.device)
        for _ in range(options.num_iters):
            prompts = self.prompter(soft_masks, stride=self.stride, image_embeddings=image_embeddings, valid=valid)
            prompts = self.prompter.with_user_prompts(
                prompts, points=cues.points, point_labels=cues.point_labels, boxes=cues.boxes
            )
            candidates = self.decode(image_embeddings, prompts).float()
            if coarse_iou is None and candidates.prompt_iou_predictions is not None:
                coarse_iou = candidates.prompt_iou_predictions
            chosen = candidates.mean() if options.candidate == "mean" else candidates.multimask().best()
            new_logits = chosen.low_res_logits[:, 0]
            new_masks = (new_logits > 0) & valid
            alive = alive & new_masks.flatten(1).any(1)
            changes.append(torch.where(alive, mask_iou(new_masks, soft_masks >= 0.5), 1.0))
            previous = ious[-1] if ious else torch.zeros_like(changes[-1])
            ious.append(torch.where(alive, chosen.iou_predictions[:, 0], previous))
            unanimity = torch.where(alive, _unanimity(candidates, valid), unanimity)
            logits = torch.where(alive[:, None, None], new_logits, logits)
            soft_masks = torch.where(alive[:, None, None], new_masks.to(soft_masks.dtype), soft_masks)
        if coarse_iou is None:
            coarse_iou = torch.full_like(ious[0], torch.nan)
        return _Passes(logits, torch.stack(ious, 1), torch.stack(changes, 1), coarse_iou, unanimity)


def _unanimity(candidates: MaskPrediction, valid: Tensor) -> Tensor:
    """(n,) what all candidates share over what any of them covers; 1 where none covers anything."""
    masks = (candidates.low_res_logits > 0) & valid[:, None]
    return mask_iou(masks.all(1), masks.any(1))


def _is_whole(frame: Frame) -> bool:
    height, width = frame.image_size
    return frame.window == (0, 0, width, height)


def _chunks(frames: Mapping[int, Frame], chunk_size: int) -> Iterator[tuple[list[int], list[Frame]]]:
    """Masks to decode together: first those of the whole image, which share its embedding, then the zoomed."""
    for whole in (True, False):
        indices = [i for i, frame in frames.items() if _is_whole(frame) is whole]
        for start in range(0, len(indices), chunk_size):
            chunk = indices[start : start + chunk_size]
            yield chunk, [frames[i] for i in chunk]


def _zoom_window(image_size: tuple[int, int], box: Sequence[float], context: float) -> tuple[int, int, int, int]:
    """The square of `context` times the long side of a box around its centre, moved and cut to fit the image."""
    side = max(round(context * max(box[2] - box[0], box[3] - box[1])), 1)
    (y0, y1), (x0, x1) = (
        _fit(round((low + high - side) / 2), side, limit)
        for low, high, limit in ((box[1], box[3], image_size[0]), (box[0], box[2], image_size[1]))
    )
    return x0, y0, x1, y1


def _fit(start: int, length: int, limit: int) -> tuple[int, int]:
    length = min(length, limit)
    start = min(max(start, 0), limit - length)
    return start, start + length


def _check_inputs(
    image: Tensor, masks: Tensor, points: Tensor | None, point_labels: Tensor | None, boxes: Tensor | None
) -> None:
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"Expected an RGB image of shape (3, H, W), got {tuple(image.shape)}.")
    if masks.dtype != torch.bool:
        raise ValueError(f"Masks must be bool, got {masks.dtype}: threshold them first, e.g. masks > 0.5.")
    if masks.ndim != 3 or masks.shape[1:] != image.shape[1:]:
        raise ValueError(
            f"Expected masks of shape (N, {image.shape[1]}, {image.shape[2]}), the size of the image, "
            f"got {tuple(masks.shape)}: resize the masks or pass the image that they belong to."
        )
    n = len(masks)
    if points is not None and (points.ndim != 3 or points.shape[0] != n or points.shape[2] != 2):
        raise ValueError(f"Expected points of shape ({n}, K, 2), K points a mask, got {tuple(points.shape)}.")
    if point_labels is not None and (points is None or point_labels.shape != points.shape[:2]):
        given = None if points is None else tuple(points.shape[:2])
        raise ValueError(f"Expected one label a point, {given}, got {tuple(point_labels.shape)}.")
    if boxes is not None and boxes.shape != (n, 4):
        raise ValueError(f"Expected boxes of shape ({n}, 4), got {tuple(boxes.shape)}.")
