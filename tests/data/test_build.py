"""Data loaders from a config, and datasets from folders."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from phoenix_d2.data.build import build_test_loader, build_train_loader
from phoenix_d2.data.datasets import register_folders, register_json


def first_batches(loader, count):
    return [[(s["image_id"], s["image"].sum().item()) for s in batch] for batch in islice(loader, count)]


def truth(folder):
    return json.loads((Path(folder) / "instances.json").read_text())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_enters_the_stream_anywhere(cfg, num_workers):
    whole = first_batches(build_train_loader(cfg), 6)
    cfg.DATALOADER.NUM_WORKERS = num_workers
    loader = build_train_loader(cfg)
    loader.dataset.sampler.start = 3 * cfg.SOLVER.IMS_PER_BATCH
    assert first_batches(loader, 3) == whole[3:]


def test_another_seed_is_another_stream(cfg):
    first = first_batches(build_train_loader(cfg), 3)
    cfg.SEED = 2
    assert first_batches(build_train_loader(cfg), 3) != first


def test_boxes_may_be_in_another_mode(cfg, drawn_folder):
    cfg.MODEL.PHOENIX.DATA.OBJECT_CROP_PROB = 1.0
    expected = first_batches(build_train_loader(cfg), 3)

    def with_corners(annotation):
        box = BoxMode.convert(annotation["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        return {**annotation, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS}

    DatasetCatalog.register(
        "test_build_corners",
        lambda: [
            {**d, "annotations": [with_corners(a) for a in d["annotations"]]} for d in DatasetCatalog.get(drawn_folder)
        ],
    )
    try:
        cfg.DATASETS.TRAIN = ("test_build_corners",)
        assert first_batches(build_train_loader(cfg), 3) == expected
    finally:
        DatasetCatalog.remove("test_build_corners")


def test_images_without_anything_to_train_on_are_left_out(cfg, drawn_folder):
    areas = {}
    for record in truth(drawn_folder)["annotations"]:
        areas[record["image_id"]] = max(record["area"], areas.get(record["image_id"], 0))
    cfg.MODEL.PHOENIX.DATA.MIN_AREA = sorted(areas.values())[2]
    seen = {s["image_id"] for batch in islice(build_train_loader(cfg), 6) for s in batch}
    assert seen == {image for image, area in areas.items() if area > cfg.MODEL.PHOENIX.DATA.MIN_AREA}


def test_nothing_to_train_on(cfg):
    cfg.MODEL.PHOENIX.DATA.MIN_AREA = 10**6
    with pytest.raises(ValueError, match="MIN_AREA"):
        build_train_loader(cfg)


def test_training_noise_comes_with_its_annotations(cfg, drawn_folder, tmp_path):
    records = [
        {"image_id": a["image_id"], "category_id": 1, "segmentation": a["segmentation"], "score": 1.0, "gt_id": a["id"]}
        for a in truth(drawn_folder)["annotations"]
    ]
    (tmp_path / "noise.json").write_text(json.dumps(records))
    cfg.DATASETS.COARSE_FILES_TRAIN = (str(tmp_path / "noise.json"),)
    for batch in islice(build_train_loader(cfg), 3):
        for sample in batch:
            assert torch.equal(sample["instances"].coarse_masks.tensor, sample["instances"].gt_masks.tensor)


@pytest.mark.parametrize("key", ["COARSE_FILES_TRAIN", "COARSE_FILES_TEST"])
def test_a_file_for_each_dataset_or_none(cfg, drawn_folder, key):
    cfg.DATASETS.TEST = (drawn_folder,)
    cfg.DATASETS[key] = ("a.json", "b.json")
    with pytest.raises(ValueError, match=rf"{key} has 2 .* 1 dataset"):
        build_train_loader(cfg)
        build_test_loader(cfg, drawn_folder)


def test_evaluation_reads_degraded_ground_truth(cfg, drawn_folder):
    cfg.DATASETS.TEST = (drawn_folder,)
    samples = [sample for batch in build_test_loader(cfg, drawn_folder) for sample in batch]
    data = truth(drawn_folder)
    assert [s["image_id"] for s in samples] == [image["id"] for image in data["images"]]
    assert sum(len(s["coarse_instances"]) for s in samples) == len(data["annotations"])


def test_evaluation_reads_a_results_file(cfg, drawn_folder, tmp_path):
    record = truth(drawn_folder)["annotations"][0]
    result = {key: record[key] for key in ("image_id", "category_id", "segmentation")}
    (tmp_path / "results.json").write_text(json.dumps([{**result, "score": 0.5}]))
    cfg.DATASETS.TEST = (drawn_folder,)
    cfg.DATASETS.COARSE_FILES_TEST = (str(tmp_path / "results.json"),)
    samples = [sample for batch in build_test_loader(cfg, drawn_folder) for sample in batch]
    counts = {s["image_id"]: len(s["coarse_instances"]) for s in samples}
    assert len(counts) == 6 and sum(counts.values()) == counts[record["image_id"]] == 1


def test_a_folder_is_registered_once_under_its_path(drawn_folder):
    register_folders([drawn_folder, drawn_folder])
    records = DatasetCatalog.get(drawn_folder)[0]["annotations"]
    assert all({"id", "area", "bbox", "segmentation"} <= set(record) for record in records)
    assert MetadataCatalog.get(drawn_folder).evaluator_type == "coco"


def test_an_unknown_dataset_is_named():
    with pytest.raises(ValueError, match=r"'no/such/folder'.*instances\.json"):
        register_folders(["no/such/folder"])


def test_a_missing_annotation_file_is_found_before_training(tmp_path):
    register_json("test_build_missing", str(tmp_path / "none.json"), str(tmp_path))
    try:
        with pytest.raises(FileNotFoundError, match=r"none\.json, of the dataset 'test_build_missing', is missing"):
            register_folders(["test_build_missing"])
    finally:
        DatasetCatalog.remove("test_build_missing")
        MetadataCatalog.remove("test_build_missing")


def test_a_registered_json_keeps_annotation_ids(drawn_folder):
    name = "test_build_lvis_style"
    register_json(name, f"{drawn_folder}/instances.json", f"{drawn_folder}/images", evaluator_type="lvis")
    try:
        ids = [record["id"] for d in DatasetCatalog.get(name) for record in d["annotations"]]
        assert ids == [record["id"] for record in truth(drawn_folder)["annotations"]]
        assert MetadataCatalog.get(name).evaluator_type == "lvis"
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
