"""Noisy masks on disk, in SegRefiner's layout, by a decoder of random weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from phoenix_d2.data.mask_json import decode_segmentation
from phoenix_d2.offline.export_noise import INDEX, export_image, merged_index, summary, trainable_tasks
from phoenix_d2.offline.job import plan_job
from phoenix_d2.perturbation import NoiseSampler
from phoenix_d2.sam.build import build_refiner

SAMPLER = NoiseSampler(num_embeddings=2, max_steps=2, max_decays=1, step_size=0.5)


@pytest.fixture
def network(test_encoder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_refiner("test").eval()


@pytest.fixture
def tasks(dataset):
    return trainable_tasks(plan_job(dataset.path, image_folder=dataset.folder).tasks, min_area=1)


def export(network, task, root):
    return export_image(network, task, root=root, name="set", sampler=SAMPLER, dense_prompt="target")


def read(path):
    with Image.open(path) as image:
        assert image.mode == "L"
        pixels = np.asarray(image)
    assert set(np.unique(pixels)) <= {0, 255}
    return pixels > 0


@pytest.mark.parametrize(("min_area", "left"), [(1, [[10, 12, 14]]), (100, [[12]]), (300, [])])
def test_masks_to_train_on(dataset, min_area, left):
    tasks = trainable_tasks(plan_job(dataset.path, image_folder=dataset.folder).tasks, min_area=min_area)
    # a crowd, a mask without a pixel and one without background never are
    assert [[record["id"] for record in task.records] for task in tasks] == left


def test_what_segrefiner_reads(network, tasks, tmp_path):
    task = tasks[0]
    outcome = export(network, task, tmp_path)
    for record, entry in zip(task.records, outcome.changes, strict=True):
        assert (tmp_path / entry["filename"]).samefile(task.path)
        assert (entry["height"], entry["width"]) == task.size
        target = read(tmp_path / entry["maskname"])
        np.testing.assert_array_equal(target, decode_segmentation(record["segmentation"], *task.size))
        coarse = read(tmp_path / entry["coarsename"])
        assert coarse.any() and coarse.shape == read(tmp_path / entry["expandname"]).shape == target.shape
        assert entry["iou"] == pytest.approx((coarse & target).sum() / (coarse | target).sum())
    assert len({entry["coarsename"] for entry in outcome.changes}) == 3
    assert "3 masks, IoU with the target" in summary([outcome])


def test_the_same_seed_writes_the_same_masks(network, tasks, tmp_path):
    first, second = (export(network, tasks[0], tmp_path / name) for name in "ab")
    assert [entry["iou"] for entry in first.changes] == [entry["iou"] for entry in second.changes]


def test_an_index_keeps_its_other_data_sets(tmp_path):
    (tmp_path / INDEX).write_text(json.dumps({"thin": [1], "set": [2]}))
    assert merged_index(tmp_path, "set", [{"filename": "a", "iou": 0.5}]) == {"thin": [1], "set": [{"filename": "a"}]}
    (tmp_path / INDEX).write_text("[]")
    with pytest.raises(ValueError, match="no index"):
        merged_index(tmp_path, "set", [])
