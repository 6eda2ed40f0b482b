"""Planning a mask file, and putting better masks back into it."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from phoenix_d2.offline.job import ImageOutcome, ImageTask, plan_job, share
from phoenix_d2.structures import RefinementStatus


def results_of(data):
    keys = ("image_id", "category_id", "segmentation", "bbox")
    return [{key: record[key] for key in keys} | {"score": 0.25} for record in data["annotations"]]


def test_masks_are_grouped_by_image_and_crowds_left_out(dataset):
    tasks = plan_job(dataset.path, image_folder=dataset.folder).tasks
    assert [(task.image_id, task.path.name, task.size, task.places) for task in tasks] == [
        (1, "a.png", (40, 60), (0, 2, 4)),
        (2, "b.png", (40, 60), (1, 3)),
    ]
    assert [record["id"] for record in tasks[0].records] == [10, 12, 14]
    assert pickle.loads(pickle.dumps(tasks)) == tasks


def test_results_take_their_images_from_the_annotations(dataset, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results_of(dataset.data)))
    job = plan_job(path, image_folder=dataset.folder, annotation_file=dataset.path)
    assert [task.places for task in job.tasks] == [(0, 2, 4), (1, 3, 5)]
    with pytest.raises(ValueError, match=r"results\.json is a results file.* pass the annotation file .*--annotations"):
        plan_job(path, image_folder=dataset.folder)
    with pytest.raises(ValueError, match=r"instances\.json is an annotation file.*omit --annotations"):
        plan_job(dataset.path, image_folder=dataset.folder, annotation_file=dataset.path)


def test_lvis_images_are_found_by_url(dataset):
    for image in dataset.data["images"]:
        image["coco_url"] = f"http://images.example/images/{image.pop('file_name')}"
    tasks = plan_job(dataset.write(dataset.data), image_folder=dataset.folder.parent).tasks
    assert tasks[0].path == dataset.folder / "a.png"
    del dataset.data["images"][0]["coco_url"]
    with pytest.raises(ValueError, match="Image id 1 has neither 'file_name' nor 'coco_url'"):
        plan_job(dataset.write(dataset.data), image_folder=dataset.folder)


def test_missing_and_wrong_images_are_named_together(dataset):
    (dataset.folder / "a.png").unlink()
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(dataset.folder / "b.png")
    with pytest.raises(ValueError) as error:
        plan_job(dataset.path, image_folder=dataset.folder)
    assert "2 image(s) cannot be used" in str(error.value)
    assert "a.png (image id 1) is missing" in str(error.value)
    assert "b.png (image id 2) is 20 x 30 (height x width), in the JSON 40 x 60" in str(error.value)
    assert f"Check that {dataset.folder}" in str(error.value)


def test_only_images_with_masks_are_needed_and_few_are_listed(dataset):
    (dataset.folder / "c.png").unlink()
    plan_job(dataset.path, image_folder=dataset.folder)

    annotation = dataset.data["annotations"][0]
    for i in range(4, 11):
        dataset.data["images"].append({"id": i, "file_name": f"{i}.png", "height": 40, "width": 60})
        dataset.data["annotations"].append({**annotation, "id": 100 + i, "image_id": i})
    with pytest.raises(ValueError, match=r"(?s)7 image\(s\).*8\.png.*and 2 more") as error:
        plan_job(dataset.write(dataset.data), image_folder=dataset.folder)
    assert "9.png" not in str(error.value)


def test_what_is_no_image_stops_the_plan(dataset):
    (dataset.folder / "b.png").write_text("no image")
    with pytest.raises(ValueError, match=r"image id 2: .*b\.png cannot be read as an image"):
        plan_job(dataset.path, image_folder=dataset.folder)


def test_what_is_invalid_is_left_out_when_asked(dataset):
    (dataset.folder / "b.png").unlink()
    dataset.data["annotations"][2]["segmentation"] = []
    path = dataset.write(dataset.data)
    with pytest.raises(ValueError, match=r"annotation id 12 .* no polygon.*\n.*--skip-invalid"):
        plan_job(path, image_folder=dataset.folder)
    job = plan_job(path, image_folder=dataset.folder, skip_invalid=True)
    assert [(task.image_id, task.places) for task in job.tasks] == [(1, (0, 4))]
    assert sorted(job.mistakes) == [1, 2, 3] and "b.png (image id 2) is missing" in job.mistakes[1]
    nothing = {1: ImageOutcome(1, [None, None], [int(RefinementStatus.KEPT_SMALL)] * 2, None, 1.0)}
    assert job.finished(nothing) == dataset.data
    assert job.summary(nothing).splitlines()[0].endswith("0 refined, 6 kept (2 too small, 3 invalid, 1 crowd)")


def test_a_folder_without_any_of_the_images_is_no_success(dataset, tmp_path):
    with pytest.raises(ValueError, match=r"2 image\(s\) cannot be used(.|\n)*Check that"):
        plan_job(dataset.path, image_folder=tmp_path / "elsewhere", skip_invalid=True)


def test_a_job_on_some_of_the_images(dataset, tmp_path):
    whole = plan_job(dataset.path, image_folder=dataset.folder)
    job = plan_job(dataset.path, image_folder=dataset.folder, max_images=2)
    drawn = {image["id"] for image in job.data["images"]}
    assert drawn == {1, 2}, "image 3 has no mask"
    (image_id,) = {
        image["id"] for image in plan_job(dataset.path, image_folder=dataset.folder, max_images=1).data["images"]
    }
    job = plan_job(dataset.path, image_folder=dataset.folder, max_images=1)
    drawn = {image_id}
    assert job.records == [record for record in dataset.data["annotations"] if record["image_id"] in drawn]
    assert [task.image_id for task in job.tasks] == [image_id]
    assert job.data["categories"] == dataset.data["categories"] and job.hashes != whole.hashes

    path = tmp_path / "results.json"
    results = results_of(dataset.data)
    results[0]["segmentation"] = results[1]["segmentation"] = None
    path.write_text(json.dumps(results))
    options = {"image_folder": dataset.folder, "annotation_file": dataset.path, "max_images": 1}
    with pytest.raises(ValueError, match="2 records have mistakes"):
        plan_job(path, **options)
    job = plan_job(path, **options, skip_invalid=True)
    assert job.data == [record for record in results[2:] if record["image_id"] in drawn] and not job.mistakes


def test_finished_changes_nothing_but_what_it_is_told(dataset):
    job = plan_job(dataset.path, image_folder=dataset.folder)
    before = copy.deepcopy(job.data)
    new = {"segmentation": {"size": [40, 60], "counts": "x"}}
    refined, empty = int(RefinementStatus.REFINED), int(RefinementStatus.KEPT_EMPTY)
    outcomes = {
        2: ImageOutcome(2, [None, None], [], "b.png cannot be read", 9.0),
        1: ImageOutcome(1, [None, new, {**new, "bbox": [1, 2, 3, 4]}], [empty, refined, refined], None, 0.6),
    }
    after = job.finished(outcomes)
    assert job.data == before
    expected = copy.deepcopy(before)
    expected["annotations"][2] |= new
    expected["annotations"][4] |= {**new, "bbox": [1, 2, 3, 4]}
    assert json.dumps(after) == json.dumps(expected)
    assert job.summary(outcomes).splitlines() == [
        "6 masks in 2 images: 2 refined, 4 kept (1 empty, 2 of unreadable images, 1 crowd)",
        "1 image(s) could not be read:",
        "  b.png cannot be read",
        "0.60 s an image, 200 ms a mask",
    ]


def test_time_and_a_hint_where_no_mask_was_refined(dataset):
    job = plan_job(dataset.path, image_folder=dataset.folder)
    rejected = int(RefinementStatus.KEPT_REJECTED)
    outcomes = {
        task.image_id: ImageOutcome(task.image_id, [None] * task.num_masks, [rejected] * task.num_masks, None, 0.5)
        for task in job.tasks
    }
    _, hint, times = job.summary(outcomes).splitlines()
    assert "--gate off" in hint and times == "0.50 s an image, 200 ms a mask"


def test_a_shard_names_what_it_could_not_read(dataset):
    job = plan_job(dataset.path, image_folder=dataset.folder)
    outcomes = {1: ImageOutcome(1, [None] * 3, [], "a.png cannot be read", 0.5), 2: ImageOutcome(2, [], [], None, 0.5)}
    line, unread, name = job.progress(outcomes).splitlines()
    assert line.startswith("1 of 2 images are finished") and name == "  a.png cannot be read"
    assert unread == "1 image(s) could not be read (repair them, as --resume tries them again):"


def test_a_file_without_masks_is_a_job_too(dataset):
    dataset.data["annotations"] = []
    job = plan_job(dataset.write(dataset.data), image_folder=dataset.folder)
    assert job.tasks == () and job.finished({}) == dataset.data
    assert job.summary({}).splitlines() == [
        "0 masks in 0 images: 0 refined, 0 kept",
        "warning: the input holds no masks",
    ]


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
def test_shares_are_disjoint_whole_and_even(dataset, num_workers):
    counts = [1, 9, 2, 2, 8, 1]
    tasks = [ImageTask(i, dataset.folder, (4, 4), (0,) * count, ({},) * count) for i, count in enumerate(counts)]
    shares = [[task.image_id for task in share(tasks, rank, num_workers)] for rank in range(num_workers)]
    assert sorted(image_id for ids in shares for image_id in ids) == list(range(6))
    assert all(ids == sorted(ids) for ids in shares)
    if num_workers == 2:
        assert [sum(counts[image_id] for image_id in ids) for ids in shares] == [12, 11]
