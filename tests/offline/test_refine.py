"""Refining images with a refiner whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from phoenix_d2.data.mask_json import decode_segmentation
from phoenix_d2.evidence import MaskSource
from phoenix_d2.offline.job import plan_job
from phoenix_d2.offline.refine import refine_image
from phoenix_d2.options import RefineOptions
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.structures import RefinementStatus

REFINED, EMPTY, SMALL = RefinementStatus.REFINED, RefinementStatus.KEPT_EMPTY, RefinementStatus.KEPT_SMALL


@pytest.fixture
def tasks(dataset):
    return plan_job(dataset.path, image_folder=dataset.folder).tasks


def test_the_masks_of_an_image_go_together(refiner, tasks):
    outcomes = [refine_image(refiner, task) for task in tasks]
    assert refiner.seen == [3, 2]
    assert [outcome.statuses for outcome in outcomes] == [[REFINED, REFINED, SMALL], [REFINED, EMPTY]]
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert all(outcome.seconds > 0 for outcome in outcomes)


def test_refined_masks_become_rle_and_kept_ones_stay(refiner, tasks):
    for task in tasks:
        outcome = refine_image(refiner, task)
        for record, change, status in zip(task.records, outcome.changes, outcome.statuses, strict=True):
            if status != REFINED:
                assert change is None
                continue
            assert list(change) == ["segmentation"] and isinstance(change["segmentation"]["counts"], str)
            expected = np.roll(decode_segmentation(record["segmentation"], *task.size), 2, axis=1)
            np.testing.assert_array_equal(decode_segmentation(change["segmentation"], *task.size), expected)


def test_boxes_and_areas_follow_where_a_record_has_them(refiner, tasks):
    first, second, _ = refine_image(refiner, tasks[0], update_boxes=True).changes
    assert (first["bbox"], first["area"]) == ([12, 10, 10, 20], 200)
    assert second["bbox"] == [7, 5, 20, 10] and "area" not in second


def test_an_unreadable_image_leaves_its_masks(refiner, tasks):
    path = tasks[0].path
    path.write_bytes(path.read_bytes()[:60])
    outcome = refine_image(refiner, tasks[0])
    assert list(outcome.changes) == [None] * 3 and not outcome.statuses and not refiner.seen
    assert "a.png cannot be read as an image" in outcome.error
    path.unlink()
    assert "a.png" in refine_image(refiner, tasks[0]).error


def test_an_image_of_another_size_is_named(refiner, tasks):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tasks[0].path)
    with pytest.raises(ValueError, match=r"a\.png \(image id 1\): the mask is 40 x 60 .* its image is 20 x 30"):
        refine_image(refiner, tasks[0])


def test_cues_reach_the_refiner_and_masks_without_any_keep_to_themselves(refiner, tasks):
    class Listener(PhoenixRefiner):
        def __init__(self):
            self.heard, self.refiner = [], SimpleNamespace(gate=None, options=RefineOptions())

        def refine(self, image, masks, *, source, **cues):
            assert source is known
            self.heard.append((len(masks), {name: array.tolist() for name, array in cues.items()}))
            return refiner.refine(image, masks)

    records = list(tasks[0].records)
    records[1] = records[1] | {"prompt_box": [5, 5, 20, 10]}
    task = replace(tasks[0], records=tuple(records))
    listener = Listener()
    known = MaskSource()
    with_cues, plain = refine_image(listener, task, source=known), refine_image(refiner, tasks[0])
    assert listener.heard == [(2, {}), (1, {"boxes": [[5, 5, 25, 15]]})]
    assert (with_cues.changes, with_cues.statuses) == (plain.changes, plain.statuses)
