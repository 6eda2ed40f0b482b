"""Training hooks, and what they write."""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path

import cv2
import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, get_event_storage

from phoenix_d2.visualization import training_panel

logger = logging.getLogger(__name__)

_DIAGNOSTICS = ("iou", "noise", "region")


class PanelWriter(HookBase):
    """Writes a picture of image, target, noisy and refined mask every `period` iterations.

    To `panels/` in the output folder, and to TensorBoard.

    Args:
        period: in iterations; 0 never writes.
        output_dir: of the run.
    """

    def __init__(self, period: int, output_dir: str) -> None:
        self.period = period
        self.folder = Path(output_dir, "panels")

    def after_step(self) -> None:
        """Write when it is time."""
        iteration = self.trainer.iter + 1
        if self.period == 0 or iteration % self.period != 0:
            return
        model = getattr(self.trainer.model, "module", self.trainer.model)
        if not model.latest_panel:
            return
        panel = training_panel(model.latest_panel)
        self.folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(self.folder / f"{iteration:07d}.png"), panel[..., ::-1])
        get_event_storage().put_image("panel", torch.from_numpy(panel).permute(2, 0, 1))


class DiagnosticsPrinter(EventWriter):
    """Prints in one line what Detectron2's printer, which knows losses alone, leaves out: IoUs, noise and regions.

    Args:
        window_size: iterations that every figure is averaged over.
    """

    def __init__(self, window_size: int = 20) -> None:
        self.window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        """Print what is newer than the last line."""
        storage = get_event_storage()
        figures = defaultdict(list)
        for name, (_, iteration) in storage.latest().items():
            kind, _, what = name.partition("_")
            if kind in _DIAGNOSTICS and iteration > self._last_write:
                figures[kind].append(f"{what} {storage.history(name).avg(self.window_size):.3f}")
        if figures:
            line = "  ".join(f"{kind}: {', '.join(figures[kind])}" for kind in _DIAGNOSTICS if kind in figures)
            logger.info("iter: %d  %s", storage.iter, line)
            self._last_write = storage.iter
