"""The refiner: encode an image, prompt with coarse masks, decode, and again.

The only place where the steps are composed; training, the detector hook and the offline tools all
come here. Shape letters as in `structures`; S is the side of the model input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phoenix_d2.cascade import CascadeResult, run_cascade
from phoenix_d2.colors import WindowColors
from phoenix_d2.evidence import EVIDENCE, MaskSource, edge_strength, measure_evidence
from phoenix_d2.gate import RefinementGate, judge
from phoenix_d2.ops.chunks import for_chunks
from phoenix_d2.ops.frames import Frame
from phoenix_d2.ops.windows import Tile, outline, tiles_along
from phoenix_d2.options import RefineOptions
from phoenix_d2.plan import MIN_LOW_RES_AREA, plan_masks
from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.prompting.cues import UserCues
from phoenix_d2.sam.decoder import EMBED_DIM, MaskDecoder
from phoenix_d2.sam.prompt_encoder import PromptEncoder
from phoenix_d2.structures import MaskPrediction, Prompts, RefinementResult, RefinementStatus

if TYPE_CHECKING:
    from phoenix_d2.sam.feature_cache import CachedEncoder

__all__ = ["MaskRefiner", "RefineOptions"]

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class _WindowFeatures:
    """What is computed once of n windows of an image.

    Attributes:
        embeddings: (n, C, h, w) float.
        edges: (n, s, s) float, see `edge_strength`.
        colors: of the windows; None where they are not asked.
    """

    embeddings: Tensor
    edges: Tensor
    colors: WindowColors | None


def half_dtype(device: torch.device) -> torch.dtype:
    """What a GPU computes in at half precision: bfloat16, which has the range of float32, or float16.

    GPUs of a compute capability below 8 (V100, T4, RTX 20) have no bfloat16; PyTorch emulates it there.
    """
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


class MaskRefiner(nn.Module):
    """SAM's encoder and decoder, prompted by coarse masks.

    Args:
        image_encoder: (B, 3, S, S) -> (B, C, h, w).
        prompt_encoder: embeds `Prompts`; its `input_image_size` tells S.
        mask_decoder: predicts mask candidates.
        prompter: turns coarse masks into `Prompts`.
        options: how `refine` works unless told otherwise.
        encoder_name: entry of the encoder registry, stored in checkpoints.
        pixel_mean, pixel_std: of RGB values in 0 to 255.
        frozen: submodules of the encoder that are never trained, "" for all of it.
        gate: calibrated for these weights, decides which refined masks are accepted; None where there is none.

    Attributes:
        cached_encoder: what `refine` encodes with in place of `encode_image`, see `sam.feature_cache.cache_embeddings`;
            None to compute every embedding.
        half_precision: let `refine` encode and decode in half precision on a GPU (see `half_dtype`); False for float32.
            Embeddings for a cache are computed in float32 in any case, as is what is made of masks and logits.
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
        self.cached_encoder: CachedEncoder | None = None
        self.half_precision = True
        # sizes of chunks that memory sufficed for, by the size asked for and whether an embedding is shared
        self._fitting_sizes: dict[tuple[int, bool], int] = {}
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)
        for name in self.frozen:
            image_encoder.get_submodule(name).requires_grad_(False)

    def train(self, mode: bool = True) -> MaskRefiner:
        """Train all but what is frozen, whose batch statistics must not move either."""
        super().train(mode)
        for name in self.frozen:
            self.image_encoder.get_submodule(name).eval()
        return self

    def compile_network(self, *, backend: str = "inductor") -> None:
        """Let `torch.compile` make the image encoder and the decoder's transformer faster, in place.

        Weights and their names stay. The first images pay for it, and new numbers of masks until it has seen that
        these vary: for long jobs on a GPU.

        Args:
            backend: of `torch.compile`.
        """
        self.image_encoder.compile(backend=backend)
        self.mask_decoder.transformer.compile(backend=backend)

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
        return self._normalise(frame.image_to_input(image))

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed preprocessed images: (B, 3, S, S) -> (B, C, h, w)."""
        embeddings: Tensor = self.image_encoder(images)
        return embeddings

    def derive_prompts(self, soft_masks: Tensor, image_embeddings: Tensor, valid: Tensor | None) -> Prompts:
        """What `prompter` makes of N masks, in training as in use.

        Args:
            soft_masks: (N, s, s) float in [0, 1], coverage in the low-resolution frame.
            image_embeddings: (N, C, h, w), or (1, C, h, w) when all masks lie in one image.
            valid: (N, s, s) bool, pixels that are image and not padding; all when None.
        """
        # behind SAM's own channels there may be others, which say nothing of what is similar
        own = image_embeddings[:, :EMBED_DIM]
        return self.prompter(soft_masks, stride=self.stride, image_embeddings=own, valid=valid)

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
        source: MaskSource | None = None,
        options: RefineOptions | None = None,
        keep_logits: bool = False,
    ) -> RefinementResult:
        """Refine the masks of one image.

        What a mask becomes depends on the image and that mask alone, never on the other masks; whether the gate then
        accepts it depends on them too, since they come from the same source.

        Args:
            image: (3, H, W) RGB in 0 to 255, uint8 or float.
            coarse_masks: (N, H, W) bool.
            points: (N, K, 2) continuous (x, y) image coordinates that replace the points derived from
                the masks in every pass.
            point_labels: (N, K), 1 on the object, 0 off it, -1 for no point; all 1 when None.
            boxes: (N, 4) XYXY in image pixels, exclusive maxima, that replace the derived boxes.
            source: what other images have shown of the source of these masks.
            options: those of the refiner when None.
            keep_logits: give back `low_res_logits` too, which take more memory than all else.

        Raises:
            ValueError: masks, points, labels or boxes do not fit the image or one another, a label is unknown, a box
                empty, or a calibrated gate is asked of a refiner without one.
            torch.OutOfMemoryError: a single mask does not fit into the device's memory; of more, half as many are
                decoded at a time from then on, in later calls too.
        """
        options = options or self.options
        self._check_inputs(image, coarse_masks, options)
        cues = UserCues.checked(points, point_labels, boxes, num_masks=len(coarse_masks)).to(self.device)
        image, coarse_masks = image.to(self.device), coarse_masks.to(self.device)
        status, frames = self.plan(coarse_masks, options, cues)
        masks, passes, evidence = self._refine_frames(image, coarse_masks, frames, cues, options, keep_logits)

        def keep(rows: Tensor, reason: RefinementStatus) -> None:
            # one by one: all at once would be another copy of them
            for i in rows.nonzero()[:, 0].tolist():
                masks[i] = coarse_masks[i]
            status[rows] = int(reason)

        vanished = (status == RefinementStatus.REFINED) & ~masks.flatten(1).any(1)
        keep(vanished, RefinementStatus.KEPT_VANISHED)
        passes.logits[vanished], passes.ious[vanished], passes.changes[vanished] = 0.0, 0.0, 1.0
        evidence[vanished] = torch.nan

        decoded = status == RefinementStatus.REFINED
        source = (source or MaskSource()) + MaskSource.of(evidence)
        accepted, predicted_gain = judge(evidence, source, self.gate, options)
        rejected = decoded & ~accepted
        keep(rejected, RefinementStatus.KEPT_REJECTED)
        if options.window_scale:
            for i in decoded.nonzero()[:, 0].tolist():
                masks[i] = self._refine_outline(image, masks[i], coarse_masks[i], frames[i], source, options)
                # of a mask that was rejected as a whole, windows may still have been accepted
                if rejected[i] and not masks[i].equal(coarse_masks[i]):
                    status[i] = int(RefinementStatus.REFINED)
        return RefinementResult(
            masks=masks,
            iou_predictions=passes.ious[:, -1].clone(),
            coarse_iou_predictions=passes.coarse_iou,
            low_res_logits=passes.logits,
            status=status,
            iou_trace=passes.ious,
            change_trace=passes.changes,
            evidence=evidence,
            predicted_gain=predicted_gain.masked_fill(~decoded, torch.nan),
        )

    def plan(
        self, masks: Tensor, options: RefineOptions | None = None, cues: UserCues | None = None
    ) -> tuple[Tensor, dict[int, Frame]]:
        """What `refine` does with the (N, H, W) bool masks of an image.

        Args:
            masks: (N, H, W) bool.
            options: those of the refiner when None.
            cues: for the masks, which windows hold too; None where there are none.

        Returns:
            (N,) long, values of `RefinementStatus`, and by index the frames of those that are to be refined.
        """
        whole = self.frame((masks.shape[1], masks.shape[2]))
        return plan_masks(masks, whole, options or self.options, cues or UserCues())

    def _refine_frames(
        self,
        image: Tensor,
        coarse_masks: Tensor,
        frames: Mapping[int, Frame],
        cues: UserCues,
        options: RefineOptions,
        keep_logits: bool,
    ) -> tuple[Tensor, CascadeResult, Tensor]:
        """Refine those of N masks that have a frame, a chunk at a time.

        Returns:
            (N, H, W) bool masks, what the passes made of them (without logits unless they are kept), and the (N, F)
            evidence on it. Masks without a frame are the coarse ones.
        """
        n, side = len(coarse_masks), self.low_res_size if keep_logits else 0
        passes = CascadeResult.of_no_pass(n, options.num_iters, side, self.device)
        evidence = torch.full((n, len(EVIDENCE)), torch.nan, device=self.device)
        masks = coarse_masks.clone()
        whole = [i for i, frame in frames.items() if frame.is_whole]
        zoomed = [i for i, frame in frames.items() if not frame.is_whole]
        shared = self._encode_windows(image, [frames[whole[0]]], options) if whole else None

        def refine_rows(chunk: Sequence[int]) -> None:
            chunk_frames = [frames[i] for i in chunk]
            features = (
                shared if shared and chunk_frames[0].is_whole else self._encode_windows(image, chunk_frames, options)
            )
            rows = torch.tensor(chunk, device=self.device)
            own_cues = cues.in_frames(rows, chunk_frames)
            own_masks = [coarse_masks[i] for i in chunk]
            own, evidence[rows] = self._refine_chunk(features, own_masks, chunk_frames, own_cues, options)
            passes.ious[rows], passes.changes[rows], passes.coarse_iou[rows] = own.ious, own.changes, own.coarse_iou
            if keep_logits:
                passes.logits[rows] = own.logits
            for i, frame, mask_logits in zip(chunk, chunk_frames, own.logits, strict=True):
                x0, y0, x1, y1 = frame.window
                masks[i] = False
                masks[i, y0:y1, x0:x1] = frame.logits_to_window(mask_logits[None])[0] > 0

        self._for_chunks(refine_rows, whole, options, shared=True)
        self._for_chunks(refine_rows, zoomed, options, shared=False)
        return masks, passes, evidence

    def _for_chunks(
        self, work: Callable[[Sequence[_Item]], None], items: Sequence[_Item], options: RefineOptions, *, shared: bool
    ) -> None:
        """`for_chunks`, beginning with the size that fitted last; `shared`: the items share an embedding."""
        asked = options.masks_at_once(self.device.type)
        size = self._fitting_sizes.get((asked, shared), asked)
        self._fitting_sizes[asked, shared] = for_chunks(work, items, size)

    def _refine_chunk(
        self,
        features: _WindowFeatures,
        masks: Sequence[Tensor],
        frames: Sequence[Frame],
        cues: UserCues,
        options: RefineOptions,
    ) -> tuple[CascadeResult, Tensor]:
        """Refine n (H, W) bool masks, each in its frame.

        Args:
            features: of the frames' windows; of one for all, or of one each.
            masks: (H, W) bool each.
            frames: one a mask.
            cues: in model-input coordinates.
            options: as in `refine`.

        Returns:
            What the passes made of the masks, and the (n, F) evidence on it.
        """
        embeddings, colors = features.embeddings, features.colors
        soft_masks = torch.cat([frame.masks_to_low_res(mask[None]) for mask, frame in zip(masks, frames, strict=True)])
        valid = torch.cat([frame.valid_mask(self.device) for frame in frames])

        def predict(given: Tensor, rows: Tensor) -> MaskPrediction:
            own = embeddings if len(embeddings) == 1 else embeddings[rows]
            prompts = self.derive_prompts(given, own, valid[rows])
            with self._autocast():
                return self.decode(own, self.prompter.with_user_prompts(prompts, cues[rows]))

        if colors is None:
            passes = run_cascade(predict, soft_masks, valid, options)
        else:

            def correct(logits: Tensor, rows: Tensor) -> Tensor:
                # as many rows as windows are all of them: masks that leave the cascade never come back
                own = colors if len(colors) in (1, len(rows)) else colors[rows]
                return own.correct(logits, options.color_weight)

            cleaned = colors.clean(soft_masks, options.color_weight)
            passes = run_cascade(predict, cleaned, valid, options, correct)
        evidence = measure_evidence(
            soft_masks >= 0.5,
            passes.logits,
            features.edges,
            valid=valid,
            iou_predictions=passes.ious[:, -1],
            coarse_iou_predictions=passes.coarse_iou,
            change_trace=passes.changes,
            unanimity=passes.unanimity,
        )
        return passes, evidence

    def _refine_outline(
        self,
        image: Tensor,
        mask: Tensor,
        coarse_mask: Tensor,
        frame: Frame,
        source: MaskSource,
        options: RefineOptions,
    ) -> Tensor:
        """Refine an (H, W) bool mask once more, on windows along its outline that are blended into it."""
        side = round(options.window_scale * self.input_size)
        if max(frame.window_size) <= side:
            return mask
        # what the pass over the whole mask lost of the coarse one is looked at again
        edge = outline(torch.stack([mask, coarse_mask])).any(0)
        scale = (self.low_res_size / side) ** 2
        tiles = [
            tile
            for tile in tiles_along(edge, frame.window, side)
            if mask[tile.slices].count_nonzero() * scale >= MIN_LOW_RES_AREA
        ]
        blended = mask.float()

        def refine_tiles(chunk: Sequence[Tile]) -> None:
            frames = [replace(frame, window=tile.window) for tile in chunk]
            features = self._encode_windows(image, frames, options)
            passes, evidence = self._refine_chunk(features, [mask] * len(chunk), frames, UserCues(), options)
            accepted, _ = judge(evidence, source, self.gate, options)
            # a window that the decoder empties may show a part of the object that it takes for none
            accepted = accepted & (passes.logits > 0).flatten(1).any(1)
            for tile, window, logits, is_accepted in zip(chunk, frames, passes.logits, accepted.tolist(), strict=True):
                if is_accepted:
                    tile.blend(blended, mask, window.logits_to_window(logits[None])[0].sigmoid())

        self._for_chunks(refine_tiles, tiles, options, shared=False)
        return blended > 0.5

    def _encode_windows(self, image: Tensor, frames: Sequence[Frame], options: RefineOptions) -> _WindowFeatures:
        """What is to be known of windows of a (3, H, W) image, of their colours only where options ask them."""
        resized = [frame.image_to_input(image) for frame in frames]
        windows = torch.stack([self._normalise(pixels) for pixels in resized])
        if self.cached_encoder is None:
            with self._autocast():
                embeddings = self.encode_image(windows).float()
        else:
            embeddings, _ = self.cached_encoder.encode(resized)
        valid = torch.cat([frame.valid_mask(self.device) for frame in frames])
        low_res = F.avg_pool2d(windows, self.stride)
        colors = None
        if options.color_weight:
            # the last row and column of an image may share their low-resolution pixels with padding
            inside = torch.stack([self._pad(torch.ones_like(pixels[:1], dtype=windows.dtype)) for pixels in resized])
            shares = F.avg_pool2d(inside, self.stride).clamp(min=1e-6)
            colors = WindowColors.of((low_res / shares * self.pixel_std + self.pixel_mean) / 255, valid)
        return _WindowFeatures(embeddings, edge_strength(low_res, valid), colors)

    def _normalise(self, pixels: Tensor) -> Tensor:
        """Normalise and pad (3, h, w) pixels of the model input: (3, S, S) float."""
        return self._pad((pixels.to(self.pixel_mean) - self.pixel_mean) / self.pixel_std)

    def _pad(self, pixels: Tensor) -> Tensor:
        """Pad (C, h, w) pixels of the model input with 0: (C, S, S)."""
        height, width = pixels.shape[-2:]
        return F.pad(pixels, (0, self.input_size - width, 0, self.input_size - height))

    def _autocast(self) -> AbstractContextManager[Any]:
        """Half precision for the network on a GPU, if `half_precision` says so; else as the caller has it."""
        if self.device.type != "cuda" or not self.half_precision:
            return nullcontext()
        return torch.autocast("cuda", dtype=half_dtype(self.device))

    def _check_inputs(self, image: Tensor, masks: Tensor, options: RefineOptions) -> None:
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"Expected an RGB image of shape (3, H, W), got {tuple(image.shape)}.")
        if masks.dtype != torch.bool:
            raise ValueError(f"Masks must be bool, got {masks.dtype}: threshold them first, e.g. masks > 0.5.")
        size = f"(N, {image.shape[1]}, {image.shape[2]})"
        if masks.ndim == 2:
            raise ValueError(f"Expected masks of shape {size}, got {tuple(masks.shape)}: pass one mask as mask[None].")
        if masks.ndim != 3 or masks.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"Expected masks of shape {size}, the size of the image, got {tuple(masks.shape)}: resize the masks or "
                "pass the image that they belong to."
            )
        if options.gate == "calibrated" and self.gate is None:
            raise ValueError(
                "The gate 'calibrated' was asked, but this refiner has none: calibrate one (tools/calibrate_gate.py), "
                "or choose 'auto', 'fixed' or 'off'."
            )
