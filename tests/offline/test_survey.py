"""What the gate comes to know of a job's masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phoenix_d2.baselines import build_refiner as build_baseline
from phoenix_d2.evidence import ENOUGH_MASKS, EVIDENCE, MaskSource
from phoenix_d2.offline import run, survey
from phoenix_d2.offline.job import plan_job
from phoenix_d2.offline.journal import Journal
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam.build import build_refiner
from tests.gates import gate_of

GATE = gate_of(0.1)


@pytest.fixture
def refiner(test_encoder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_refiner("test", options=RefineOptions(num_iters=1))
    network.gate = GATE
    return PhoenixRefiner(network)


@pytest.fixture
def job(dataset):
    return plan_job(dataset.path, image_folder=dataset.folder)


def test_the_mean_evidence_of_masks_that_no_gate_chose(refiner, job):
    source = survey.survey(refiner, job.tasks, survey.read_scene)
    results = [refiner.refine(*survey.read_scene(task), gate="off") for task in job.tasks]
    evidence = np.concatenate([result.evidence for result in results])
    expected = MaskSource.of(evidence)
    assert source.num_masks == expected.num_masks > 2
    assert source.mean_evidence == pytest.approx(expected.mean_evidence, nan_ok=True, rel=1e-5)


def test_no_more_is_refined_than_tells_enough(refiner, job):
    task, read = job.tasks[0], []
    mask = survey.read_scene(task)[1][:1]

    def read_many(task):
        read.append(task)
        return survey.read_scene(task)[0], mask.repeat(20, axis=0)

    source = survey.survey(refiner, [task] * 100, read_many)
    assert source.num_masks == ENOUGH_MASKS == 8 * len(read), "a few masks of each image"


@pytest.mark.parametrize("why", ["off", "no gate", "no network"])
def test_nothing_is_refined_where_no_gate_goes_by_it(refiner, job, why):
    if why == "off":
        refiner.refiner.options = RefineOptions(gate="off")
    elif why == "no gate":
        refiner.refiner.gate = None
    refiner = build_baseline("morphology") if why == "no network" else refiner
    source = survey.survey(refiner, job.tasks, lambda task: pytest.fail("read"))
    assert source.num_masks == 0


def test_what_cannot_be_read_is_left_to_the_job(refiner, job):
    job.tasks[0].path.write_bytes(b"no image")
    source = survey.survey(refiner, job.tasks, survey.read_scene)
    assert 0 < source.num_masks <= len(job.tasks[1].records)


def test_a_job_is_surveyed_first_where_windows_build_on_what_the_gate_accepts(refiner, job, tmp_path, monkeypatch):
    refiner, known = refiner.with_options(window_scale=1.0), []
    refine = PhoenixRefiner.refine

    def spy(self, image, masks, *, source=None, **options):
        known.append(source)
        return refine(self, image, masks, source=source, **options)

    expected = survey.survey(refiner, job.tasks, survey.read_scene)
    monkeypatch.setattr(PhoenixRefiner, "refine", spy)
    run.run_job(job, Journal(tmp_path / "refined.json"), lambda device: refiner, run.RunOptions(device="cpu"))
    # first the survey, which knows nothing
    assert known == [None] * len(job.tasks) + [expected] * len(job.tasks)
    assert len(expected.mean_evidence) == len(EVIDENCE)
