"""How masks are refined: the options of `MaskRefiner.refine`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

GateMode: TypeAlias = Literal["auto", "calibrated", "fixed", "off"]
Candidate: TypeAlias = Literal["best", "mean"]


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """How `MaskRefiner.refine` works through the masks of an image.

    Attributes:
        num_iters: most passes of the cascade; each pass' mask is the next one's input (paper B.3).
        candidate: what a pass makes of the decoder's candidates: "best", the multimask one of the highest predicted IoU
            (paper B.3), or "mean", the mean logits of all, which bets on none where the prediction is unsure.
        stop_overlap: a mask goes through no more passes after one that left it with at least this IoU to what it was;
            at 1, which changes no result, after one that left it as it was (but the first, whose prompt is not binary).
        color_weight: how much the colours of the image have to say beside the coarse mask, before the first pass, and
            beside the decoder, after each; see `phoenix_d2.colors`. 0, as in the paper, is nothing.
        chunk_size: masks decoded together, which bounds the memory; see `masks_at_once` for None.
        zoom_small: refine masks that are too small for the low-resolution frame (under 16 of its
            pixels) on a window of their own around them; off, they are kept as they were.
        zoom_below: also zoom every mask whose window is smaller than this share of the image's long
            side. Finer outlines for an encoder pass a mask; 0 is off.
        zoom_context: side of a window in units of the mask's box.
        window_scale: refine once more on overlapping windows along the outline, whose side is this many times that of
            the model input: 1 sees the image at its own resolution. For large masks with fine parts, at an encoder
            pass a window; the gate judges each window too. 0 is off.
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
    stop_overlap: float = 1.0
    color_weight: float = 0.0
    chunk_size: int | None = None
    zoom_small: bool = True
    zoom_below: float = 0.0
    zoom_context: float = 2.0
    window_scale: float = 0.0
    gate: GateMode = "auto"
    gate_min_iou: float = 0.5
    gate_min_overlap: float = 0.5

    def __post_init__(self) -> None:
        counts = [self.num_iters] if self.chunk_size is None else [self.num_iters, self.chunk_size]
        if not all(isinstance(count, int) and count >= 1 for count in counts):
            raise ValueError(f"num_iters {self.num_iters} and chunk_size {self.chunk_size} are whole, at least 1.")
        if not 0 < self.stop_overlap <= 1:
            raise ValueError(f"stop_overlap is an IoU above 0 and up to 1, got {self.stop_overlap}.")
        if not 0 <= self.color_weight < math.inf:
            raise ValueError(f"color_weight must be at least 0, which is off, got {self.color_weight}.")
        if not (self.window_scale == 0 or 0.1 <= self.window_scale < math.inf):
            raise ValueError(f"window_scale must be 0, which is off, or at least 0.1, got {self.window_scale}.")
        if not 0 <= self.zoom_below < math.inf:
            raise ValueError(f"zoom_below is a share of the image's long side, at least 0, got {self.zoom_below}.")
        if self.candidate not in get_args(Candidate):
            raise ValueError(f"Unknown candidate {self.candidate!r}: expected one of {', '.join(get_args(Candidate))}.")
        if not 1 < self.zoom_context < math.inf:
            raise ValueError(f"zoom_context must be above 1, the box itself, got {self.zoom_context}.")
        if self.gate not in get_args(GateMode):
            raise ValueError(f"Unknown gate {self.gate!r}: expected one of {', '.join(get_args(GateMode))}.")
        if not (0 <= self.gate_min_iou <= 1 and 0 <= self.gate_min_overlap <= 1):
            raise ValueError(
                f"gate_min_iou {self.gate_min_iou} and gate_min_overlap {self.gate_min_overlap} must be from 0 to 1."
            )

    @property
    def uses_calibrated_gate(self) -> bool:
        """Whether a calibrated gate decides, where there is one."""
        return self.gate in ("auto", "calibrated")

    def masks_at_once(self, device_type: str) -> int:
        """`chunk_size`, or where it is None, 2 on a "cpu", to which more are only more memory, and 32 elsewhere."""
        return self.chunk_size or (2 if device_type == "cpu" else 32)
