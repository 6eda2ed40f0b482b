"""Training in small: it runs, it reports, it evaluates, and it goes on exactly where it stopped."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from phoenix_d2.engine import Trainer
from phoenix_d2.engine.hooks import DiagnosticsPrinter, PanelWriter


class LossRecorder(HookBase):
    """Keeps every loss of every iteration."""

    def __init__(self):
        self.losses = []

    def after_step(self):
        latest = self.trainer.storage.latest()
        self.losses.append({name: value for name, (value, _) in latest.items() if "loss" in name})


def train(cfg, *, until=None, resume=False):
    """Train, as a run that is stopped before iteration `until`; the losses of every iteration."""
    torch.manual_seed(0)
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    recorder = LossRecorder()
    trainer.register_hooks([recorder])
    trainer.max_iter = until or trainer.max_iter
    trainer.train()
    return trainer, recorder.losses


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("architecture", ["Phoenix", "PromptableDecoder"])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(cfg, tmp_path, architecture, num_workers):
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    cfg.TEST.EVAL_PERIOD = 0
    whole_trainer, whole = train(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "resumed")
    cfg.DATALOADER.NUM_WORKERS = num_workers
    _, first = train(cfg, until=3)
    # what was not saved must not matter
    torch.rand(100)
    resumed_trainer, second = train(cfg, resume=True)
    assert len(whole) == 6 and len(first) == len(second) == 3
    assert first + second == whole
    weights = zip(whole_trainer.model.state_dict().items(), resumed_trainer.model.state_dict().values(), strict=True)
    assert not [name for (name, a), b in weights if not torch.equal(a, b)]


def test_training_changes_what_is_trainable_alone(cfg):
    cfg.MODEL.PHOENIX.TRAINABLE = ("mask_decoder",)
    cfg.SOLVER.MAX_ITER = 2
    cfg.TEST.EVAL_PERIOD = 0
    torch.manual_seed(0)
    before = {name: value.clone() for name, value in Trainer.build_model(cfg).state_dict().items()}
    trainer, _ = train(cfg)
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[1] for name in changed if name.startswith("refiner.")} == {"mask_decoder"}
    assert any(name.startswith("criterion.projector.") for name in changed)


def test_a_run_reports_evaluates_and_draws(cfg, drawn_folder, caplog):
    caplog.set_level(logging.INFO, logger="phoenix_d2")
    cfg.DATASETS.TEST = (drawn_folder,)
    cfg.SOLVER.MAX_ITER = 4
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    # at the end
    cfg.TEST.EVAL_PERIOD = 0
    cfg.TEST.EXPECTED_RESULTS = [["coarse_segm", "AP", 50.0, 50.0]]
    trainer, _ = train(cfg)
    assert set(trainer._last_eval_results) >= {"coarse_segm", "coarse_boundary", "segm", "boundary"}

    output = Path(cfg.OUTPUT_DIR)
    panels = sorted(path.name for path in (output / "panels").iterdir())
    assert panels == ["0000002.png", "0000004.png"]
    height, width = cv2.imread(str(output / "panels" / panels[0])).shape[:2]
    # image, target, noisy and refined beside one another
    assert height > 96 and width > 4 * 128

    board = EventAccumulator(str(output))
    board.Reload()
    assert "panel" in board.Tags()["images"]
    assert {"total_loss", "gradient_norm", "iou_gain", "noise_steps", "noise_in_band", "region_failure_fg"} <= set(
        board.Tags()["scalars"]
    )
    assert "segm/AP" in board.Tags()["scalars"]

    (line,) = [record.getMessage() for record in caplog.records if record.name == "phoenix_d2.engine.hooks"]
    for figure in ("gain", "refined", "noise:", "steps", "in_band", "region:", "failure_bg"):
        assert figure in line


def test_results_other_than_expected_end_the_run(cfg, drawn_folder):
    cfg.DATASETS.TEST = (drawn_folder,)
    cfg.SOLVER.MAX_ITER = 1
    cfg.TEST.EXPECTED_RESULTS = [["segm", "AP", 1000.0, 1.0]]
    with pytest.raises(SystemExit):
        train(cfg)


def test_a_loss_that_is_none_ends_the_run(cfg):
    Path(cfg.OUTPUT_DIR).mkdir()
    trainer = Trainer(cfg)
    torch.nn.init.constant_(trainer.model.refiner.mask_decoder.iou_token.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="NaN"):
        trainer.train()


def test_the_whole_gradient_is_clipped(cfg):
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1e-3
    trainer, _ = train(cfg, until=1)
    norms = [p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert trainer.storage.latest()["gradient_norm"][0] > 1e-3


def test_figures_are_averaged_and_printed_once(caplog):
    caplog.set_level(logging.INFO, logger="phoenix_d2")
    printer = DiagnosticsPrinter(window_size=2)
    with EventStorage(0) as storage:
        for iteration, gain in enumerate((9.0, 0.25, 0.75)):
            storage.iter = iteration
            storage.put_scalar("iou_gain", gain)
            storage.put_scalar("noise_steps", 4)
            storage.put_scalar("loss_dice", 1)
        printer.write()
        printer.write()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "iter: 2  iou: gain 0.500  noise: steps 4.000"


def test_nothing_is_printed_where_there_is_nothing(caplog):
    caplog.set_level(logging.INFO, logger="phoenix_d2")
    with EventStorage(0):
        DiagnosticsPrinter().write()
    assert not caplog.records


@pytest.mark.parametrize(("period", "iteration", "written"), [(0, 4, False), (5, 3, False), (5, 4, True)])
def test_panels_come_every_period(tmp_path, period, iteration, written):
    class Model:
        latest_panel = {  # noqa: RUF012
            "image": torch.zeros(3, 6, 8, dtype=torch.uint8),
            "target": torch.ones(4, 4),
        }

    class Run:
        model = Model()
        iter = iteration

    hook = PanelWriter(period, str(tmp_path))
    hook.trainer = Run()
    with EventStorage(0):
        hook.after_step()
        Run.model.latest_panel = {}
        hook.after_step()
    assert (tmp_path / "panels" / "0000005.png").exists() == written
