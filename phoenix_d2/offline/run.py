"""Run a refinement job: on one or several processes, on one or several machines, on from where a run was killed."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.multiprocessing.spawn import ProcessContext, spawn
from tqdm import tqdm

from phoenix_d2.baselines.base import CropRefiner
from phoenix_d2.offline.job import ImageOutcome, ImageTask, RefinementJob, share
from phoenix_d2.offline.journal import Journal, fingerprint_of
from phoenix_d2.offline.refine import refine_images
from phoenix_d2.predictor import PhoenixRefiner

BuildRefiner: TypeAlias = Callable[[str], PhoenixRefiner | CropRefiner]
"""Builds a refiner on a device; with several workers it is pickled and called in each."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How `run_job` works through its images.

    Attributes:
        num_workers: processes, this one among them, one a GPU where there are any, else sharing the CPU.
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
) -> dict[Any, ImageOutcome]:
    """Refine the images of the journal's shard that are not finished yet, with a progress bar.

    A killed run can go on until the journal is removed, which is the caller's to do once its own output is written.

    Args:
        job: planned and checked.
        journal: where finished images go. Of a shard, only its own images are refined.
        build_refiner: of the refiner.
        options: processes, device and so on.

    Returns:
        All finished images by id, those of other shards too: one for every task of the job, unless the journal is of a
        shard.

    Raises:
        OSError: the journal or the weights cannot be opened.
        ValueError: there are fewer GPUs than workers, the refiner cannot be built, or the journal is of another run.
    """
    _check_workers(options.num_workers)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    refiner = build_refiner(_device_of(0, device, options))
    journal.begin(fingerprint_of(refiner, job, update_boxes=options.update_boxes), resume=options.resume)
    finished = journal.outcomes()
    index, count = journal.shard
    tasks = [task for task in share(job.tasks, index - 1, count) if task.image_id not in finished]
    try:
        if min(options.num_workers, len(tasks)) > 1:
            _share_work(refiner, tasks, journal, build_refiner, device, options)
        else:
            with _progress_bar(tasks) as progress, journal.file(journal.next_file()) as file:
                for outcome in refine_images(refiner, tasks, file, update_boxes=options.update_boxes):
                    progress.update(len(outcome.changes))
    except BaseException:
        tqdm.write(f"Finished images are kept in {journal.folder}: go on with --resume.", file=sys.stderr)
        raise
    return journal.outcomes()


def _check_workers(num_workers: int) -> None:
    if torch.cuda.is_available() and num_workers > max(torch.cuda.device_count(), 1):
        raise ValueError(
            f"{num_workers} workers exceed the GPUs of this machine, {torch.cuda.device_count()}: ask for fewer, or "
            "hide the GPUs (CUDA_VISIBLE_DEVICES=) to work on the CPU."
        )


class _TaskQueue:
    """Tasks that several processes take in turn, those of most masks first, so that all end at about the same time.

    Args:
        tasks: images to refine; handed to a process when it is started.
    """

    def __init__(self, tasks: Sequence[ImageTask]) -> None:
        self._tasks = sorted(tasks, key=lambda task: -len(task.records))
        self._num_taken = multiprocessing.get_context("spawn").Value("q", 0)

    def __iter__(self) -> Iterator[ImageTask]:
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
        return sum(len(task.records) for task in self._tasks[: self._num_taken.value])


def _share_work(
    refiner: PhoenixRefiner | CropRefiner,
    tasks: Sequence[ImageTask],
    journal: Journal,
    build_refiner: BuildRefiner,
    device: str,
    options: RunOptions,
) -> None:
    """Refine on this process and others, which set out later: each first imports and builds what is here already."""
    queue, first_file = _TaskQueue(tasks), journal.next_file()
    arguments = (queue, journal, first_file + 1, build_refiner, device, options)
    workers: ProcessContext = spawn(_work, args=arguments, nprocs=min(options.num_workers, len(tasks)) - 1, join=False)
    try:
        with (
            _share_of_threads(options.num_workers),
            _progress_bar(tasks) as progress,
            journal.file(first_file) as file,
        ):
            for _ in refine_images(refiner, queue, file, update_boxes=options.update_boxes):
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
    build_refiner: BuildRefiner,
    device: str,
    options: RunOptions,
) -> None:
    """One of the other processes."""
    with _share_of_threads(options.num_workers), journal.file(first_file + index) as file:
        refiner = build_refiner(_device_of(index + 1, device, options))
        for _ in refine_images(refiner, queue, file, update_boxes=options.update_boxes):
            pass


def _device_of(rank: int, device: str, options: RunOptions) -> str:
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


def _progress_bar(tasks: Iterable[ImageTask]) -> tqdm[Any]:
    return tqdm(total=sum(len(task.records) for task in tasks), unit="mask", disable=None)
