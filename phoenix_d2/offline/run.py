"""Run a refinement job: on one or several processes, on one or several machines, on from where a run was killed."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Protocol, TypeAlias

import torch
from torch.multiprocessing.spawn import ProcessContext, spawn
from tqdm import tqdm

from phoenix_d2.baselines.base import CropRefiner
from phoenix_d2.evidence import MaskSource
from phoenix_d2.offline.decide import decide
from phoenix_d2.offline.job import ImageOutcome, RefinementJob, share
from phoenix_d2.offline.journal import Journal, fingerprint_of
from phoenix_d2.offline.refine import refine_image
from phoenix_d2.offline.survey import survey_job
from phoenix_d2.predictor import PhoenixRefiner, find_device

BuildRefiner: TypeAlias = Callable[[str], PhoenixRefiner | CropRefiner]
"""Builds a refiner on a device; with several workers it is pickled and called in each."""

RefineTask: TypeAlias = Callable[[Any, Any], ImageOutcome]
"""What a refiner makes of a task; with several workers it is pickled too."""


class Task(Protocol):
    """An image to work on."""

    @property
    def image_id(self) -> Any:
        """By which its outcome is found."""

    @property
    def num_masks(self) -> int:
        """How much work it is."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How `run_job` works through its images.

    Attributes:
        num_workers: processes, this one among them, one a GPU, or sharing the CPU.
        device: of the refiner; "cuda" if there is one, else "cpu", when None.
        update_boxes: let "bbox" and "area" of a record follow its mask, where it has them.
        resume: go on with what an earlier run of the same job finished.
    """

    num_workers: int = 1
    device: str | None = None
    update_boxes: bool = False
    resume: bool = False


def run_job(
    job: RefinementJob, journal: Journal, build_refiner: BuildRefiner, options: RunOptions
) -> Mapping[Any, ImageOutcome]:
    """Refine the images of the journal's shard that are not finished yet, with a progress bar.

    A killed run can go on until the journal is removed, which is the caller's to do once its own output is written.

    Args:
        job: planned and checked.
        journal: where finished images go. Of a shard, only its own images are refined.
        build_refiner: of the refiner.
        options: processes, device and so on.

    Returns:
        All finished images by id, those of other shards too: one for every task of the job, unless the journal is of a
        shard, whose images the gate has not decided on yet.

    Raises:
        OSError: the journal or the weights cannot be opened.
        ValueError: there are fewer GPUs than workers, the refiner cannot be built, the journal is of another run, or
            was removed by one.
    """
    refiner = build_first(build_refiner, options)
    fingerprint = fingerprint_of(refiner, job, update_boxes=options.update_boxes)
    finished = journal.begin(fingerprint, resume=options.resume)
    index, count = journal.shard
    tasks = [task for task in share(job.tasks, index - 1, count) if task.image_id not in finished]
    source = survey_job(refiner, job.tasks) if tasks else MaskSource()
    refine = partial(refine_image, source=source, update_boxes=options.update_boxes)
    outcomes = run_tasks(tasks, journal, refine, refiner, build_refiner, options)
    return outcomes if count > 1 else decide(job.tasks, outcomes, refiner)


def build_first(build_refiner: BuildRefiner, options: RunOptions) -> PhoenixRefiner | CropRefiner:
    """The refiner of this process; errors as `run_job`, but for the journal's."""
    refiner = build_refiner(_device_of(0, options))
    # refiners without a network run on the CPU, whatever the device
    if _device(options).startswith("cuda") and not isinstance(refiner, CropRefiner):
        num_gpus = torch.cuda.device_count() if _device(options) == "cuda" else 1
        if options.num_workers > num_gpus:
            raise ValueError(
                f"{options.num_workers} workers would share {num_gpus} GPU(s): ask for fewer workers, or let them work "
                "on the CPU (--device cpu)."
            )
    return refiner


def run_tasks(
    tasks: Sequence[Task],
    journal: Journal,
    refine: RefineTask,
    refiner: PhoenixRefiner | CropRefiner,
    build_refiner: BuildRefiner,
    options: RunOptions,
) -> dict[Any, ImageOutcome]:
    """Work on tasks of any kind, with a progress bar.

    Args:
        tasks: those that are not finished yet.
        journal: begun; where outcomes go.
        refine: called once a task.
        refiner: of this process, see `build_first`.
        build_refiner: of the refiners of other processes.
        options: processes and device.

    Returns:
        All finished images by id.

    Raises:
        ValueError: another run of the same job ended meanwhile, and removed the journal.
    """
    try:
        if min(options.num_workers, len(tasks)) > 1:
            _share_work(tasks, journal, refine, refiner, build_refiner, options)
        else:
            with _progress_bar(tasks) as progress, journal.file(journal.next_file()) as file:
                for task in tasks:
                    file.append(refine(refiner, task))
                    progress.update(task.num_masks)
    except BaseException:
        tqdm.write(f"Finished images are kept in {journal.folder}: go on with --resume.", file=sys.stderr)
        raise
    outcomes = journal.outcomes()
    if any(task.image_id not in outcomes for task in tasks):
        raise ValueError(
            f"{journal.folder} was removed meanwhile, as a run does that has written the output: if no other run of "
            "the same job has, repeat the command."
        )
    return outcomes


class _TaskQueue:
    """Tasks that several processes take in turn, those of most masks first, so that all end at about the same time.

    Args:
        tasks: images to refine; handed to a process when it is started.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = sorted(tasks, key=lambda task: -task.num_masks)
        self._total_masks = [0, *accumulate(task.num_masks for task in self._tasks)]
        self._num_taken = multiprocessing.get_context("spawn").Value("q", 0)

    def __iter__(self) -> Iterator[Task]:
        while (place := self._take()) < len(self._tasks):
            yield self._tasks[place]

    def _take(self) -> int:
        with self._num_taken.get_lock():
            place: int = self._num_taken.value
            self._num_taken.value += 1
        return place

    @property
    def num_masks_taken(self) -> int:
        """Masks of the images that any process has taken."""
        # at the end, every process takes a place beyond the last task
        num_taken: int = self._num_taken.value
        return self._total_masks[min(num_taken, len(self._tasks))]


def _share_work(
    tasks: Sequence[Task],
    journal: Journal,
    refine: RefineTask,
    refiner: PhoenixRefiner | CropRefiner,
    build_refiner: BuildRefiner,
    options: RunOptions,
) -> None:
    """Refine on this process and others, which set out later: each first imports and builds what is here already."""
    queue, first_file = _TaskQueue(tasks), journal.next_file()
    arguments = (queue, journal, first_file + 1, refine, build_refiner, options)
    workers: ProcessContext = spawn(_work, args=arguments, nprocs=min(options.num_workers, len(tasks)) - 1, join=False)
    try:
        with (
            _share_of_threads(options.num_workers),
            _progress_bar(tasks) as progress,
            journal.file(first_file) as file,
        ):
            for task in queue:
                file.append(refine(refiner, task))
                progress.update(queue.num_masks_taken - progress.n)
                # raises if one of them failed
                workers.join(timeout=0)
        while not workers.join():
            pass
    finally:
        for process in workers.processes:
            process.terminate()


def _work(
    index: int,
    queue: _TaskQueue,
    journal: Journal,
    first_file: int,
    refine: RefineTask,
    build_refiner: BuildRefiner,
    options: RunOptions,
) -> None:
    """One of the other processes."""
    with _share_of_threads(options.num_workers), journal.file(first_file + index) as file:
        refiner = build_refiner(_device_of(index + 1, options))
        for task in queue:
            file.append(refine(refiner, task))


def _device(options: RunOptions) -> str:
    return options.device or str(find_device())


def _device_of(rank: int, options: RunOptions) -> str:
    device = _device(options)
    return f"cuda:{rank}" if device == "cuda" and options.num_workers > 1 else device


@contextmanager
def _share_of_threads(num_workers: int) -> Iterator[None]:
    """Leave cores to the other processes, unless the user has said how many threads each is to have."""
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(before // num_workers, 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _progress_bar(tasks: Iterable[Task]) -> tqdm[Any]:
    """A bar on a terminal; elsewhere, as in the log of a batch job, a line a minute."""
    total = sum(task.num_masks for task in tasks)
    if sys.stderr.isatty():
        return tqdm(total=total, unit="mask")
    line = "{n_fmt} of {total_fmt} masks, {elapsed} gone, {remaining} left\n"
    return tqdm(total=total, bar_format=line, delay=60, mininterval=60, leave=False)
