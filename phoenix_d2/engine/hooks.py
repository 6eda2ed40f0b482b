"""Training hooks."""

from __future__ import annotations

from pathlib import Path

import cv2
import torch
from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage

from phoenix_d2.visualization import training_panel


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
        panel = training_panel(model.latest_panel)
        self.folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(self.folder / f"{iteration:07d}.png"), panel[..., ::-1])
        get_event_storage().put_image("panel", torch.from_numpy(panel).permute(2, 0, 1))
