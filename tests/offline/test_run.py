"""Running a job: whose images are refined, what is asked again, and what a failure leaves."""

from __future__ import annotations

import multiprocessing
import shutil
from contextlib import nullcontext

import pytest
import torch

from phoenix_d2.baselines import build_refiner
from phoenix_d2.baselines.morphology import Morphology
from phoenix_d2.offline import run as run_module
from phoenix_d2.offline.job import ImageOutcome, plan_job
from phoenix_d2.offline.journal import Journal
from phoenix_d2.offline.run import RunOptions, _TaskQueue, build_first, run_job, run_tasks


def morphology(device):
    assert device == "cpu"
    return build_refiner("morphology")


def failing_elsewhere(device):
    if multiprocessing.parent_process() is not None:
        raise RuntimeError("out of memory")
    return morphology(device)


@pytest.fixture
def run(dataset, tmp_path, monkeypatch):
    """Runs the job of the dataset; returns what comes back and the images that were refined."""
    seen = []
    original = run_module.refine_image

    def refine_image(refiner, task, **options):
        seen.append(task.image_id)
        return original(refiner, task, **options)

    monkeypatch.setattr(run_module, "refine_image", refine_image)
    job = plan_job(dataset.path, image_folder=dataset.folder)

    def run_shard(shard=(1, 1), **options):
        seen.clear()
        journal = Journal(tmp_path / "refined.json", shard=shard)
        return run_job(job, journal, morphology, RunOptions(device="cpu", **options)), list(seen)

    return run_shard


def test_shards_refine_their_own_and_see_all(run):
    assert [(list(outcomes), seen) for outcomes, seen in (run((1, 2)), run((2, 2)))] == [([1], [1]), ([1, 2], [2])]
    outcomes, seen = run(resume=True)
    assert not seen and [len(outcomes[i].changes) for i in (1, 2)] == [3, 2]


def test_a_shard_goes_on_with_its_own_images_when_asked(run):
    run((1, 2))
    with pytest.raises(ValueError, match="holds 1 images"):
        run((1, 2))
    assert run((1, 2), resume=True)[1] == []
    # what others have finished counts in any division
    assert run((1, 1), resume=True)[1] == [2]


def test_another_option_is_another_run(run):
    run((1, 2))
    with pytest.raises(ValueError, match="belongs to a run with other update_boxes"):
        run((2, 2), update_boxes=True)


def test_a_failure_tells_where_finished_images_are(run, monkeypatch, capsys):
    def fail(refiner, task, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(run_module, "refine_image", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run()
    assert "refined.json.partial: go on with --resume" in capsys.readouterr().err


def test_processes_take_every_image_once_and_the_large_ones_first(dataset):
    queue = _TaskQueue(plan_job(dataset.path, image_folder=dataset.folder).tasks)
    one, other = iter(queue), iter(queue)
    assert queue.num_masks_taken == 0
    assert next(one).image_id == 1 and queue.num_masks_taken == 3
    assert next(other).image_id == 2 and queue.num_masks_taken == 5
    assert [*one, *other] == [] and queue.num_masks_taken == 5


def test_each_outcome_is_kept_before_the_next_image(dataset, tmp_path):
    journal, num_kept = Journal(tmp_path / "refined.json"), []
    journal.begin({}, resume=False)

    def refine(refiner, task):
        num_kept.append(len(journal.outcomes()))
        return ImageOutcome(task.image_id, [None] * task.num_masks, [], None, 0.0)

    tasks = plan_job(dataset.path, image_folder=dataset.folder).tasks
    assert list(run_tasks(tasks, journal, refine, None, morphology, RunOptions(device="cpu"))) == [1, 2]
    assert num_kept == [0, 1]


def test_the_end_of_another_run_is_noticed(run, tmp_path, monkeypatch):
    def refine_image(refiner, task, **options):
        shutil.rmtree(tmp_path / "refined.json.partial", ignore_errors=True)
        return ImageOutcome(task.image_id, [None] * task.num_masks, [], None, 0.0)

    monkeypatch.setattr(run_module, "refine_image", refine_image)
    with pytest.raises(ValueError, match=r"refined\.json\.partial was removed meanwhile"):
        run()


@pytest.mark.parametrize(
    ("refiner", "asked_for", "num_workers", "refused"),
    [
        ("network", None, 2, True),
        ("network", None, 1, False),
        ("network", "cuda:0", 2, True),
        ("network", "cpu", 2, False),
        ("morphology", None, 2, False),
    ],
)
def test_workers_do_not_share_a_gpu(monkeypatch, refiner, asked_for, num_workers, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    options = RunOptions(device=asked_for, num_workers=num_workers)
    build = {"network": object, "morphology": Morphology}[refiner]
    with pytest.raises(ValueError, match=r"2 workers .* 1 GPU.*--device cpu") if refused else nullcontext():
        build_first(lambda device: build(), options)


@pytest.mark.slow
def test_a_worker_that_fails_ends_the_run_which_can_go_on(dataset, tmp_path, capsys):
    job = plan_job(dataset.path, image_folder=dataset.folder)
    journal, options = Journal(tmp_path / "refined.json"), RunOptions(device="cpu", num_workers=2)
    with pytest.raises(Exception, match="out of memory"):
        run_job(job, journal, failing_elsewhere, options)
    assert "refined.json.partial: go on with --resume" in capsys.readouterr().err
    outcomes = run_job(job, journal, morphology, RunOptions(device="cpu", resume=True))
    assert sorted(outcomes) == [1, 2]
