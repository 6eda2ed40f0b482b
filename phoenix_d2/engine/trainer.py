"""Detectron2's trainer, for a refiner."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from phoenix_d2.data.build import build_test_loader, build_train_loader
from phoenix_d2.engine.checkpointer import RefinerCheckpointer
from phoenix_d2.engine.hooks import DiagnosticsPrinter, PanelWriter
from phoenix_d2.engine.optimizer import build_clipper, build_optimizer
from phoenix_d2.evaluation.build import build_evaluator


class StepTrainer(SimpleTrainer):
    """One step, with gradient clipping over all parameters and loss scaling where float16 needs it.

    Detectron2's `AMPTrainer` demands CUDA; which part of the model runs in which precision is the
    model's own matter here.

    Args:
        clip: clips all gradients and returns their norm, or None.
        scale_loss: whether gradients are computed in float16.

    The others are those of `SimpleTrainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        clip: Callable[[], torch.Tensor] | None,
        scale_loss: bool,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.clip = clip
        self.scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=scale_loss)

    def run_step(self) -> None:
        """See `TrainerBase.run_step`."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        losses = self.model(data)
        self.optimizer.zero_grad()
        self.scaler.scale(sum(losses.values())).backward()
        self.scaler.unscale_(self.optimizer)
        if self.clip is not None:
            get_event_storage().put_scalar("gradient_norm", self.clip())
        self._write_metrics(losses, data_time)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """See `TrainerBase.state_dict`; the loss scale is part of it."""
        return super().state_dict() | {"scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `TrainerBase.load_state_dict`."""
        self.scaler.load_state_dict(state_dict["scaler"])
        super().load_state_dict(state_dict)


class Trainer(DefaultTrainer):
    """`DefaultTrainer` for the architectures of `phoenix_d2.modeling`.

    What differs: it also runs distributed on CPUs, checkpoints leave the frozen encoder out, a resumed
    run goes on exactly where the other stopped, and panels of masks are written as often as checkpoints.

    Args:
        cfg: of the run.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own constructor hard-wires DDP on GPUs, AMPTrainer and its checkpointer
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        clip = build_clipper(cfg, model)
        devices = [comm.get_local_rank()] if model.device.type == "cuda" else None
        # SAM's positional encoding is a random buffer: the first process' goes to all, here and never again
        parallel = create_ddp_model(model, broadcast_buffers=True, device_ids=devices)
        if isinstance(parallel, DistributedDataParallel):
            parallel.broadcast_buffers = False
        float16 = cfg.SOLVER.AMP.ENABLED and cfg.MODEL.PHOENIX.AMP_DTYPE == "float16"
        self._trainer = StepTrainer(
            parallel,
            data_loader,
            optimizer,
            clip=clip,
            scale_loss=float16,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = RefinerCheckpointer(self.model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """See `DefaultTrainer.resume_or_load`; the data stream goes on where it stopped."""
        super().resume_or_load(resume)
        self.data_loader.dataset.sampler.start = self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH

    def build_hooks(self) -> list[hooks.HookBase]:
        """See `DefaultTrainer.build_hooks`."""
        default = super().build_hooks()
        if comm.is_main_process():
            default.insert(-1, PanelWriter(self.cfg.SOLVER.CHECKPOINT_PERIOD, self.cfg.OUTPUT_DIR))
        return default

    def build_writers(self) -> list[EventWriter]:
        """See `DefaultTrainer.build_writers`; diagnostics are printed beside the losses."""
        return [*super().build_writers(), DiagnosticsPrinter()]

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """See `DefaultTrainer.test`."""
        # past DDP's wrapper: a process without a test image must not keep others waiting
        results: dict[str, Any] = super().test(cfg, getattr(model, "module", model), evaluators)
        return results

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See `phoenix_d2.engine.optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> torch.utils.data.DataLoader:
        """See `phoenix_d2.data.build`."""
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> torch.utils.data.DataLoader:
        """See `phoenix_d2.data.build`."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Mask AP and boundary AP, before and after; see `phoenix_d2.evaluation.build`."""
        return build_evaluator(cfg, dataset_name)
