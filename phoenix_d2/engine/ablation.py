"""Ablations: one training in several variants, each with several seeds; what is finished is never done again.

Where an ablation sets `seconds`, variants are compared at equal training time: a probe, a whole run in little, measures
what an iteration of a variant costs, and its runs get as many iterations as fit. Schedules that follow iterations stay
whole that way, and a resumed run goes on exactly where it stopped.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng

from phoenix_d2.config import find_config, load_config, override_config
from phoenix_d2.data.datasets import register_folders
from phoenix_d2.data.degrade import degrade_annotations
from phoenix_d2.data.mask_json import (
    Record,
    draw_images,
    load_annotations,
    load_results,
    read_json,
    write_json_atomically,
)
from phoenix_d2.engine.checkpointer import RefinerCheckpointer
from phoenix_d2.engine.trainer import Trainer
from phoenix_d2.evaluation.instance_masks import evaluate_masks, paired_iou
from phoenix_d2.offline.ablation_report import AblationRun, Metrics, Scores
from phoenix_d2.offline.decide import decide
from phoenix_d2.offline.job import RefinementJob, plan_job
from phoenix_d2.offline.refine import refine_image
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.sam.hashing import hash_file

Overrides: TypeAlias = dict[str, Any]

# in these iterations a probe runs through all schedules; the first one, slower than the others, is not counted
_PROBE_ITERS = 13


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What is varied, and how it is trained and measured.

    Attributes:
        base: config that all runs start from, a path or the name of a shipped one.
        overrides: of config keys, for all runs.
        axes: axis -> value -> overrides of config keys. Each combination of values is a variant; the combination of the
            first ones is what the others are compared with.
        inference: name -> fields of `RefineOptions`, ways of refining with the same weights.
        inputs: name -> (kind, strength) of the degradation of the test masks.
        seeds: of the runs of each variant.
        max_iter: iterations of a run; None where `seconds` is given.
        seconds: of the training of a run, see `StepTime`; None where `max_iter` is given.

    Raises:
        TypeError: `inference` names an option that there is not.
        ValueError: an axis or the seeds are empty, or not exactly one of `max_iter` and `seconds` is given.
    """

    base: str
    overrides: Overrides = field(default_factory=dict)
    axes: dict[str, dict[str, Overrides]] = field(default_factory=dict)
    inference: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    inputs: dict[str, tuple[str, float]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (1, 2, 3)
    max_iter: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.max_iter is None) == (self.seconds is None):
            raise ValueError(f"max_iter is {self.max_iter} and seconds is {self.seconds}: give one of the two.")
        if not self.seeds or not self.inference or not all(self.axes.values()):
            raise ValueError("seeds, inference or an axis is empty: name at least one value of each.")
        for options in self.inference.values():
            RefineOptions(**options)

    @property
    def variants(self) -> dict[str, Overrides]:
        """Overrides of config keys by variant."""
        combinations = itertools.product(*(values.items() for values in self.axes.values()))
        return {
            ", ".join(name for name, _ in combination): {
                key: value for _, overrides in combination for key, value in overrides.items()
            }
            for combination in combinations
        }


def read_ablation(name: str) -> Ablation:
    """Read an ablation from a yaml file: its path, or the name of a shipped one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has keys that an `Ablation` has not, lacks some, or has values that do not fit.
    """
    path = find_config(name)
    content = yaml.safe_load(Path(path).read_text())
    known = {f.name for f in fields(Ablation)}
    if not isinstance(content, Mapping) or not set(content) <= known:
        raise ValueError(f"{path}: expected a mapping of some of {', '.join(sorted(known))}; got {content!r:.200}.")
    try:
        ablation = Ablation(**content)
        # yaml takes names like 1 for numbers
        axes = {axis: _by_text(values) for axis, values in ablation.axes.items()}
        return replace(ablation, axes=axes, inference=_by_text(ablation.inference))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _by_text(named: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value or {} for name, value in named.items()}


@dataclass(frozen=True)
class EvaluationInput:
    """Coarse masks to refine, and what they should have been.

    Attributes:
        annotations: ground truth.
        job: the coarse masks, whose records carry `gt_id`.
    """

    annotations: Record
    job: RefinementJob

    @property
    def fingerprint(self) -> str:
        """Says whether two inputs are the same."""
        return hashlib.sha256(json.dumps([self.annotations, self.job.data]).encode()).hexdigest()

    def score(self, results: Sequence[Record]) -> Metrics:
        """Mean IoU and Boundary IoU over masks, mask AP and boundary AP of results; percent."""
        pairs = paired_iou(self.annotations, results)
        assert pairs is not None, "checked when the input was prepared"
        ap = evaluate_masks(self.annotations, results)
        return {"IoU": pairs.iou, "bIoU": pairs.boundary_iou, "AP": ap["segm"]["AP"], "bAP": ap["boundary"]["AP"]}


def prepare_inputs(
    ablation: Ablation, folder: Path, *, test: Path, coarse_files: Sequence[Path] = (), max_images: int | None = None
) -> dict[str, EvaluationInput]:
    """Make or read what is refined, and write it down.

    Args:
        ablation: says how the masks of `test` are degraded.
        folder: to write ground truth and coarse masks of each input to.
        test: folder of `instances.json` and `images/`.
        coarse_files: results of models, each in such a folder.
        max_images: taken of each folder, at random but always the same; all when None.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is malformed, lacks `gt_id`, or does not belong to its folder; or a degradation is unknown.
    """
    sources: dict[str, tuple[Path, Record, list[Record]]] = {}
    annotations = draw_images(load_annotations(test / "instances.json"), max_images)
    for name, (kind, strength) in ablation.inputs.items():
        sources[name] = (test, annotations, degrade_annotations(annotations, kind=kind, strength=strength))
    for file in coarse_files:
        everything = load_annotations(file.parent / "instances.json")
        results = load_results(file, annotations=everything)
        if not all("gt_id" in result for result in results):
            raise ValueError(f"{file}: results without gt_id: add the id of the annotation that each is to be.")
        annotations = draw_images(everything, max_images)
        chosen = {image["id"] for image in annotations["images"]}
        coarse = [result for result in results if result["image_id"] in chosen]
        sources[f"{file.parent.name} {file.stem.removeprefix('coarse_')}"] = (file.parent, annotations, coarse)
    if not sources:
        raise ValueError("There is nothing to evaluate on: name inputs in the ablation, or pass coarse files.")
    inputs = {}
    for name, (data, annotations, coarse) in sources.items():
        files = [folder / f"{_file_name(name)}_{part}.json" for part in ("instances", "coarse")]
        for file, content in zip(files, (annotations, coarse), strict=True):
            write_json_atomically(file, content)
        job = plan_job(files[1], image_folder=data / "images", annotation_file=files[0])
        inputs[name] = EvaluationInput(annotations, job)
    return inputs


def run_ablation(
    ablation: Ablation,
    folder: Path,
    *,
    trainings: Path,
    weights: str,
    train: Sequence[str],
    inputs: Mapping[str, EvaluationInput],
    report: Callable[[str], None],
) -> Iterator[tuple[list[AblationRun], dict[str, Scores]]]:
    """Do the runs that are not done yet, seed by seed, so that all variants can be compared early.

    Args:
        ablation: what to run.
        folder: of the scores of its runs.
        trainings: parent of a folder for each training, named by its setting: ablations share those that they have in
            common, and a training whose folder is removed is repeated.
        weights: that training starts from.
        train: datasets, registered names or folders.
        inputs: to evaluate every run on.
        report: takes a line for people, before each step that takes time.

    Yields:
        After each seed, all runs so far, and as references the scores of the coarse masks and of the weights before
        training.

    Raises:
        ValueError: a config key is unknown, or a dataset.
    """
    register_folders(train)
    fixed = {"DATASETS.TRAIN": tuple(train), "DATASETS.TEST": (), "TEST.EVAL_PERIOD": 0, "MODEL.WEIGHTS": weights}
    base = load_config(ablation.base)
    if not torch.cuda.is_available():
        base.MODEL.DEVICE = "cpu"
    cfgs = {name: _with(base, ablation.overrides | own | fixed) for name, own in ablation.variants.items()}
    iterations = {}
    for name, cfg in cfgs.items():
        if ablation.seconds is not None:
            report(f"{name or 'training'}: cost of an iteration")
        iterations[name] = _num_iterations(ablation, cfg, trainings)

    report("evaluation before training")
    measure = _Evaluation(inputs, ablation.inference)
    first = next(iter(cfgs.values()))
    references = {
        "coarse": {name: {"": given.score(given.job.data)} for name, given in inputs.items()},
        "before training": measure.once(folder / "before.json", first, lambda: (_untrained(first), 0.0))["scores"],
    }
    runs: list[AblationRun] = []
    for seed in ablation.seeds:
        for name, cfg in cfgs.items():
            report(f"{name or 'training'}, seed {seed}: {iterations[name]} iterations")
            run = _with(cfg, {"SEED": seed, "SOLVER.MAX_ITER": iterations[name]})
            scored = measure.once(folder / f"{_file_name(name)}_{seed}.json", run, partial(_train, run, trainings))
            runs.append(AblationRun(name, seed, iterations[name], **scored))
        yield runs, references


class StepTime(HookBase):
    """Adds up the time of a run's steps, over all its sittings: on a GPU that on the wall, else processor time.

    Processor time hardly depends on what else the machine does, but says nothing of what a GPU does.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.first_step: float | None = None

    def before_step(self) -> None:
        """Start."""
        self._start = self._now()

    def after_step(self) -> None:
        """Stop."""
        step = self._now() - self._start
        self.seconds += step
        if self.first_step is None:
            self.first_step = step

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Go on from a checkpoint."""
        self.seconds = state_dict["seconds"]

    def _now(self) -> float:
        if not self.trainer.cfg.MODEL.DEVICE.startswith("cuda"):
            return time.process_time()
        # what was asked of the GPU is done
        torch.cuda.synchronize()
        return time.perf_counter()


class _TimedTrainer(Trainer):
    clock: StepTime

    def build_hooks(self) -> list[HookBase]:
        self.clock = StepTime()
        # before the checkpointer, which keeps what it says
        return [self.clock, *super().build_hooks()]


def _num_iterations(ablation: Ablation, cfg: CfgNode, trainings: Path) -> int:
    """Iterations of each run of a variant; measured once, so that runs added later get as many."""
    if ablation.max_iter is not None:
        return ablation.max_iter

    def probe() -> Record:
        with TemporaryDirectory() as scratch:
            short = {"SOLVER.MAX_ITER": _PROBE_ITERS, "SOLVER.WARMUP_ITERS": 0, "OUTPUT_DIR": scratch}
            _, clock = _train_with_clock(_with(cfg, short))
        assert clock.first_step is not None
        return {"seconds_per_iteration": (clock.seconds - clock.first_step) / (_PROBE_ITERS - 1)}

    setting = _setting(cfg)
    cost = _once(_training_folder(trainings, setting) / "probe.json", setting, probe)["seconds_per_iteration"]
    return max(round(ablation.seconds / cost), 1)


def _train(cfg: CfgNode, trainings: Path) -> tuple[MaskRefiner, float]:
    """Train, or go on with, the run of a config: the refiner, and the seconds that it took altogether."""
    setting = _setting(cfg)
    folder = _training_folder(trainings, setting)
    # says to people what the folder holds, whose name does not
    write_json_atomically(folder / "setting.json", setting)
    refiner, clock = _train_with_clock(_with(cfg, {"OUTPUT_DIR": str(folder)}))
    return refiner, clock.seconds


def _training_folder(trainings: Path, setting: Record) -> Path:
    return trainings / hashlib.sha256(json.dumps(setting).encode()).hexdigest()[:16]


def _train_with_clock(cfg: CfgNode) -> tuple[MaskRefiner, StepTime]:
    seed_all_rng(cfg.SEED)
    trainer = _TimedTrainer(cfg)
    trainer.resume_or_load(resume=True)
    if trainer.start_iter < trainer.max_iter:
        trainer.train()
    return trainer.model.refiner, trainer.clock


def _untrained(cfg: CfgNode) -> MaskRefiner:
    model = Trainer.build_model(cfg)
    RefinerCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.refiner


@dataclass(frozen=True)
class _Evaluation:
    """What every refiner of an ablation goes through."""

    inputs: Mapping[str, EvaluationInput]
    inference: Mapping[str, Mapping[str, Any]]

    def once(self, path: Path, cfg: CfgNode, make: Callable[[], tuple[MaskRefiner, float]]) -> Record:
        """Make a config's refiner in some seconds and score it, unless that was done before with the same inputs."""

        def scored() -> Record:
            refiner, seconds = make()
            return {"seconds": seconds, "scores": self.scores(refiner)}

        inputs = {name: given.fingerprint for name, given in self.inputs.items()}
        return _once(path, {**_setting(cfg), "inference": self.inference, "inputs": inputs}, scored)

    def scores(self, refiner: MaskRefiner) -> Scores:
        """Refine all inputs in every way."""
        usual = refiner.options
        scores: Scores = defaultdict(dict)
        for name, given in self.inputs.items():
            for way, options in self.inference.items():
                refiner.options = replace(usual, **options)
                user = PhoenixRefiner(refiner)
                outcomes = {task.image_id: refine_image(user, task) for task in given.job.tasks}
                scores[name][way] = given.score(given.job.finished(decide(given.job.tasks, outcomes, user)))
        return dict(scores)


def _with(cfg: CfgNode, overrides: Overrides) -> CfgNode:
    changed = cfg.clone()
    override_config(changed, [part for pair in overrides.items() for part in pair])
    return changed


def _once(path: Path, setting: Any, make: Callable[[], Record]) -> Record:
    """What a file says was made with a setting; made and written where there is none, or of another setting."""
    setting = json.loads(json.dumps(setting))
    if path.is_file():
        before = read_json(path)
        if before["setting"] == setting:
            return dict(before["made"])
    write_json_atomically(path, {"setting": setting, "made": make()})
    return dict(read_json(path)["made"])


def _setting(cfg: CfgNode) -> Record:
    """All that a training depends on but the data."""
    return {"config": cfg.dump(), "weights": hash_file(cfg.MODEL.WEIGHTS)}


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name) or "run"
