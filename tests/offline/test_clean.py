"""Annotations with better masks, the verdicts on them, and the report."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest

from phoenix_d2.data.mask_json import decode_segmentation, encode_mask, run_lengths
from phoenix_d2.offline.clean import (
    ChangeReport,
    CleanedAnnotation,
    Verdict,
    clean_annotations,
    in_form_of,
    plan_cleaning,
    report_file,
    verdict_file,
    write_cleaned,
)
from phoenix_d2.offline.job import ImageOutcome
from phoenix_d2.offline.refine import refine_image
from phoenix_d2.structures import RefinementStatus

SIZE = (40, 60)


@pytest.fixture
def job(dataset):
    for annotation in dataset.data["annotations"]:
        annotation.setdefault("area", 7.25)
    dataset.data["annotations"][4]["category_id"] = 4
    dataset.data["categories"].append({"id": 4, "name": "<b>bar</b>"})
    return plan_cleaning(dataset.write(dataset.data), image_folder=dataset.folder)


@pytest.fixture
def outcomes(job, refiner):
    return {task.image_id: refine_image(refiner, task, update_boxes=True) for task in job.tasks}


def test_records_keep_their_form_and_only_masks_change(job, outcomes):
    before = copy.deepcopy(job.data)
    cleaned = list(clean_annotations(job, outcomes, tolerance=0))
    assert job.data == before
    assert [item.verdict.value for item in cleaned] == ["refined", "unchanged", "refined", "empty", "small", "crowd"]
    for item, record in zip(cleaned, job.records, strict=True):
        if item.verdict != Verdict.REFINED:
            assert item.record is record and item.iou == 1
            continue
        assert list(item.record) == list(record)
        same = set(record) - {"segmentation", "bbox", "area"}
        assert all(item.record[key] == record[key] for key in same)
        old, new = (decode_segmentation(r["segmentation"], *SIZE) for r in (record, item.record))
        assert np.array_equal(new, np.roll(old, 2, axis=1))
        assert item.iou == pytest.approx((old & new).sum() / (old | new).sum())
        assert item.record["area"] == new.sum()
    assert isinstance(cleaned[0].record["segmentation"]["counts"], str)
    assert cleaned[0].record["bbox"] == [12, 10, 10, 20]
    assert isinstance(cleaned[2].record["segmentation"], list)


@pytest.mark.parametrize("counts", ["plain", "compressed"])
def test_rle_stays_of_its_kind(counts):
    mask = np.zeros(SIZE, bool)
    mask[3:20, 4:30] = True
    # the first run of a plain RLE may be empty
    mask[0, 0] = True
    rle = encode_mask(mask)
    original = {"counts": [0, 40 * 60] if counts == "plain" else rle["counts"], "size": list(SIZE), "by": "hand"}
    new = in_form_of(original, rle, tolerance=0.5)
    assert list(new) == ["counts", "size", "by"] and type(new["counts"]) is type(original["counts"])
    assert np.array_equal(decode_segmentation(new, *SIZE), mask)
    assert json.loads(json.dumps(new)) == new and run_lengths(new["counts"]).sum() == 40 * 60


def test_polygons_hold_holes_and_parts():
    mask = np.zeros(SIZE, bool)
    mask[3:30, 4:30] = True
    mask[10:20, 10:20] = False
    mask[5:15, 40:50] = True
    polygons = in_form_of([[0, 0, 9, 0, 9, 9]], encode_mask(mask), tolerance=0.5)
    assert len(polygons) == 2
    new = decode_segmentation(polygons, *SIZE)
    assert not new[12:18, 12:18].any() and (new & mask).sum() / (new | mask).sum() >= 0.99


def test_every_status_has_a_verdict_and_gains_are_told(job):
    statuses = [RefinementStatus.KEPT_REJECTED, RefinementStatus.KEPT_VANISHED, RefinementStatus.KEPT_SMALL]
    outcomes = {
        1: ImageOutcome(1, [None] * 3, [int(status) for status in statuses], None, 0.1, [-0.25, None, 0.5]),
        2: ImageOutcome(2, [None] * 2, [], "b.png cannot be read", 0.1),
    }
    lines = [item.line() for item in clean_annotations(job, outcomes, tolerance=0.5)]
    assert [line["annotation_id"] for line in lines] == [10, 11, 12, 13, 14, 15]
    by_image = {1: [line for line in lines if line["image_id"] == 1], 2: [x for x in lines if x["image_id"] == 2]}
    assert [(x["verdict"], x["predicted_gain"]) for x in by_image[1]] == [
        ("rejected", -0.25), ("vanished", None), ("small", 0.5),
    ]  # fmt: skip
    assert [line["verdict"] for line in by_image[2]] == ["unreadable", "unreadable", "crowd"]
    assert {status.name for status in RefinementStatus} == {
        "REFINED", "KEPT_EMPTY", "KEPT_SMALL", "KEPT_VANISHED", "KEPT_REJECTED",
    }  # fmt: skip


def test_gains_of_a_gate_that_was_not_asked_are_none(job, refiner, monkeypatch):
    original = refiner.refine

    def refine(image, masks):
        result = original(image, masks)
        result.predicted_gain.fill_(math.nan)
        return result

    monkeypatch.setattr(refiner, "refine", refine)
    assert refine_image(refiner, job.tasks[0]).predicted_gains == [None] * 3


def test_three_files_are_written(job, outcomes, tmp_path):
    output = tmp_path / "new" / "cleaned.json"
    summary = write_cleaned(job, outcomes, output, tolerance=0.5)
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "cleaned.json", "cleaned.report.html", "cleaned.verdicts.jsonl",
    ]  # fmt: skip
    data = json.loads(output.read_text())
    assert list(data) == list(job.data) and {**data, "annotations": 0} == {**job.data, "annotations": 0}
    assert [record["id"] for record in data["annotations"]] == [10, 11, 12, 13, 14, 15]
    lines = [json.loads(line) for line in verdict_file(output).read_text().splitlines()]
    assert [line["verdict"] for line in lines][:2] == ["refined", "unchanged"]
    html = report_file(output).read_text()
    # of two refined masks, the one that moved more comes first
    assert html.index("annotation 10, thing, a.png") < html.index("annotation 12, thing, a.png")
    assert html.count("data:image/jpeg") == 2 and "&lt;b&gt;bar" in html and "<b>" not in html
    assert "2 refined, 1 unchanged, 1 small, 1 empty, 1 crowd; unchanged are masks that came back as they were" in html
    assert "mean IoU of refined masks with the original 0." in html
    assert summary.splitlines()[0].startswith("6 masks in 2 images: ")


def test_a_failed_report_leaves_all_files_as_they_were(job, outcomes, dataset, tmp_path):
    output = tmp_path / "cleaned.json"
    output.write_text("old")
    (dataset.folder / "a.png").unlink()
    with pytest.raises(FileNotFoundError):
        write_cleaned(job, outcomes, output, tolerance=0.5)
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cleaned.json", "images", "instances.json"]


def test_the_report_keeps_only_the_largest_changes(job):
    report = ChangeReport(num_pictures=2)
    record = job.records[0]
    for place, iou in enumerate([0.9, 0.3, 1 - 1e-9, 0.5, 0.3, 0.7]):
        report.add(place, record, CleanedAnnotation({**record, "id": place}, Verdict.REFINED, iou, 0.125))
    report.add(9, record, CleanedAnnotation(record, Verdict.REJECTED))
    html = report.html(job, title="t", summary=report.summary())
    assert html.count("<figure>") == html.count("IoU 0.300, predicted gain 0.125") == 2
    assert "verdicts: 6 refined, 1 rejected; mean IoU of refined masks with the original 0.617" in html
    assert "0.95 to 1.00</td>" in html


def test_a_file_without_masks_has_a_report_too(dataset, tmp_path):
    dataset.data["annotations"] = []
    job = plan_cleaning(dataset.write(dataset.data), image_folder=dataset.folder)
    assert write_cleaned(job, {}, tmp_path / "cleaned.json", tolerance=0.5).endswith("verdicts: none")
    assert json.loads((tmp_path / "cleaned.json").read_text()) == dataset.data


def test_results_are_no_annotations(dataset):
    path = dataset.write(dataset.data["annotations"])
    with pytest.raises(ValueError, match=r"is a list, .*expected an annotation file.*tools/refine_json\.py"):
        plan_cleaning(path, image_folder=dataset.folder)
