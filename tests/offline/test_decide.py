"""What the gate decides at the end of a job, knowing all of its masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from phoenix_d2.baselines import build_refiner as build_baseline
from phoenix_d2.data.mask_json import decode_segmentation
from phoenix_d2.evidence import EVIDENCE, MaskSource
from phoenix_d2.offline import decide, run
from phoenix_d2.offline.job import plan_job
from phoenix_d2.offline.journal import Journal
from phoenix_d2.offline.refine import refine_image
from phoenix_d2.offline.survey import read_scene
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.structures import RefinementStatus
from tests.gates import gate_of

REFINED, EMPTY, REJECTED = (
    int(status) for status in (RefinementStatus.REFINED, RefinementStatus.KEPT_EMPTY, RefinementStatus.KEPT_REJECTED)
)


@pytest.fixture
def network(test_encoder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_refiner("test", options=RefineOptions(num_iters=1))


@pytest.fixture
def job(dataset):
    return plan_job(dataset.path, image_folder=dataset.folder)


@pytest.fixture
def run_job(network, job, tmp_path):
    def run_with(gate, shard=(1, 1), **options):
        network.gate = gate
        refiner, journal = PhoenixRefiner(network), Journal(tmp_path / "refined.json", shard=shard)
        return run.run_job(job, journal, lambda device: refiner, run.RunOptions(device="cpu", **options))

    return run_with


@pytest.fixture
def source(network, job):
    results = [PhoenixRefiner(network).refine(*read_scene(task), gate="off") for task in job.tasks]
    return MaskSource.of(np.concatenate([result.evidence for result in results]))


def test_a_gate_knows_all_masks_of_the_job(network, job, run_job, source):
    mean = source.mean_evidence[EVIDENCE.index("overlap")]
    # with the source known as it is, masks that overlap more than it does on average are accepted
    share = gate_of(0.0).familiarity(source)
    gate = replace(gate_of(0.0, own=1.0, others=-1.0 / share), mean=(mean - 1.0,), std=(1.0,))
    outcomes = run_job(gate)
    statuses = [status for task in job.tasks for status in outcomes[task.image_id].statuses]
    assert sorted(set(statuses)) == [REFINED, EMPTY, REJECTED]
    for task in job.tasks:
        outcome, expected = outcomes[task.image_id], PhoenixRefiner(network).refine(*read_scene(task), gate="off")
        overlaps = expected.evidence[:, EVIDENCE.index("overlap")]
        for i, change in enumerate(outcome.changes):
            assert (change is not None) == (outcome.statuses[i] == REFINED) == (overlaps[i] >= mean)
            if change is None:
                continue
            assert np.array_equal(decode_segmentation(change["segmentation"], *task.size), expected.masks[i])
        gains = np.array(outcome.predicted_gains, float)
        assert np.allclose(gains, overlaps - mean, atol=1e-5, equal_nan=True)
        assert not outcome.evidence, "nothing is left to decide"


def test_decisions_are_those_of_python_with_the_same_source(network, job, run_job, source):
    gate = gate_of(0.0, own=0.3, others=0.2, margin=0.1)
    outcomes = run_job(gate)
    for task in job.tasks:
        refiner, (other,) = PhoenixRefiner(network), [other for other in job.tasks if other != task]
        # `refine` adds the masks at hand to the source
        elsewhere = MaskSource.of(refiner.refine(*read_scene(other)).evidence)
        expected = refiner.refine(*read_scene(task), source=elsewhere)
        assert outcomes[task.image_id].statuses == expected.status.tolist()
        assert np.allclose(
            np.array(outcomes[task.image_id].predicted_gains, float), expected.predicted_gain, equal_nan=True
        )


@pytest.mark.parametrize("sign", [1, -1])
def test_a_source_decides_for_all_of_its_masks(job, run_job, source, sign):
    others = sign * np.sign(source.mean_evidence[EVIDENCE.index("overlap")] - 0.5)
    outcomes = run_job(gate_of(0.0, others=others))
    statuses = {status for outcome in outcomes.values() for status in outcome.statuses}
    assert statuses == {EMPTY, REFINED if sign == 1 else REJECTED}


def test_shards_leave_the_decision_to_who_sees_all(job, run_job):
    gate = gate_of(-1.0, margin=1.0)
    for k in (1, 2):
        assert REJECTED not in [s for outcome in run_job(gate, shard=(k, 2)).values() for s in outcome.statuses]
    statuses = {s for outcome in run_job(gate, resume=True).values() for s in outcome.statuses}
    assert statuses == {EMPTY, REJECTED}


def test_unread_images_have_no_say(job, run_job):
    job.tasks[0].path.write_bytes(b"no image")
    outcomes = run_job(gate_of(0.0, own=1.0))
    first, second = (outcomes[task.image_id] for task in job.tasks)
    assert first.error is not None and not any(first.changes)
    assert second.error is None and EMPTY in second.statuses


@pytest.mark.parametrize("options", [{"gate": "off"}, {"gate": "fixed"}, {"window_scale": 1.0}, {}])
def test_other_gates_decide_mask_by_mask(network, job, options):
    network.gate = gate_of(0.0, own=1.0) if options else None
    refiner = PhoenixRefiner(network).with_options(**options)
    outcomes = {task.image_id: refine_image(refiner, task) for task in job.tasks}
    assert not decide.decides_late(refiner)
    assert decide.decide(job.tasks, outcomes, refiner) is outcomes
    assert not any(outcome.evidence for outcome in outcomes.values())


def test_baselines_have_nothing_to_decide(job):
    assert not decide.decides_late(build_baseline("morphology"))


def test_the_order_of_images_and_masks_decides_nothing(network, dataset, run_job):
    dataset.data["annotations"].reverse()
    reverse = plan_job(dataset.write(dataset.data), image_folder=dataset.folder)
    outcomes = run_job(gate_of(0.0, own=0.3, others=0.2))
    network.gate = gate_of(0.0, own=0.3, others=0.2)
    refiner = PhoenixRefiner(network)
    again = decide.decide(reverse.tasks, {t.image_id: refine_image(refiner, t) for t in reverse.tasks}, refiner)
    for image_id, outcome in outcomes.items():
        assert outcome.statuses == again[image_id].statuses[::-1]
