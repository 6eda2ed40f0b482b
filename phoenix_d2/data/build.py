"""Data loaders of training and evaluation."""

from __future__ import annotations

from typing import Any

import torch.utils.data
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data.build import build_batch_data_loader
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.structures import BoxMode

from phoenix_d2.data.coarse_masks import CoarseMaskMapper, attach_results, attach_training_noise
from phoenix_d2.data.dataset_mapper import RefinementDatasetMapper
from phoenix_d2.data.sample_stream import SampleStream, StreamSampler


def build_train_loader(cfg: CfgNode) -> torch.utils.data.DataLoader:
    """Endless batches of `DATASETS.TRAIN`; its sampler is a `StreamSampler`.

    Raises:
        ValueError: no annotation can be trained on, or training noise files do not match the datasets.
    """
    mapper = RefinementDatasetMapper(cfg)
    dataset_dicts = _unannotated(cfg) if cfg.MODEL.PHOENIX.TARGET == "pseudo" else _annotated(cfg, mapper)
    # what a run draws must not depend on the seed being unset
    stream = SampleStream(dataset_dicts, seed=max(cfg.SEED, 0), num_views=cfg.MODEL.PHOENIX.DATA.NUM_VIEWS)
    loader: torch.utils.data.DataLoader = build_batch_data_loader(
        MapDataset(stream, mapper),
        StreamSampler(),
        cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    return loader


def build_test_loader(cfg: CfgNode, dataset_name: str) -> torch.utils.data.DataLoader:
    """The images of one of `DATASETS.TEST` with coarse masks, from its file or from its degraded ground truth."""
    files = _one_each(cfg.DATASETS.COARSE_FILES_TEST, cfg.DATASETS.TEST, "COARSE_FILES_TEST")
    path = files[cfg.DATASETS.TEST.index(dataset_name)]
    dicts = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    if path:
        dicts = attach_results(dicts, path)
    mapper = CoarseMaskMapper(dataset_name, tuple(cfg.DATASETS.TEST_DEGRADATION))
    loader: torch.utils.data.DataLoader = build_detection_test_loader(
        DatasetFromList(dicts), mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    return loader


def _annotated(cfg: CfgNode, mapper: RefinementDatasetMapper) -> list[dict[str, Any]]:
    """The images that have anything to train on, with a model's masks beside their annotations where there are any."""
    noise_files = _one_each(cfg.DATASETS.COARSE_FILES_TRAIN, cfg.DATASETS.TRAIN, "COARSE_FILES_TRAIN")
    dataset_dicts: list[dict[str, Any]] = []
    for name, path in zip(cfg.DATASETS.TRAIN, noise_files, strict=True):
        dicts = get_detection_dataset_dicts(name, filter_empty=False)
        if not all("annotations" in d for d in dicts):
            raise ValueError(
                f"Dataset {name!r} has no annotations to train towards: add them (instances.json), or train on targets "
                "that the decoder finds itself (MODEL.PHOENIX.TARGET pseudo)."
            )
        dicts = [{**d, "annotations": list(map(_with_xywh_box, d["annotations"]))} for d in dicts]
        dataset_dicts += attach_training_noise(dicts, path) if path else dicts
    dataset_dicts = [d for d in dataset_dicts if any(map(mapper.is_trainable, d["annotations"]))]
    if not dataset_dicts:
        raise ValueError(
            f"No annotation of {cfg.DATASETS.TRAIN} can be trained on: there are none, or all are crowd or have at "
            f"most {mapper.min_area} pixels (MODEL.PHOENIX.DATA.MIN_AREA)."
        )
    return dataset_dicts


def _with_xywh_box(annotation: dict[str, Any]) -> dict[str, Any]:
    """The annotation with its box as in COCO's files, which datasets of Detectron2 may have in another mode."""
    mode = annotation.get("bbox_mode", BoxMode.XYWH_ABS)
    if mode == BoxMode.XYWH_ABS:
        return annotation
    box = BoxMode.convert(annotation["bbox"], mode, BoxMode.XYWH_ABS)
    return annotation | {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS}


def _unannotated(cfg: CfgNode) -> list[dict[str, Any]]:
    """All images, without the annotations that some of them may have."""
    if cfg.DATASETS.COARSE_FILES_TRAIN:
        raise ValueError(
            f"DATASETS.COARSE_FILES_TRAIN is {cfg.DATASETS.COARSE_FILES_TRAIN}, masks of annotations, which "
            "MODEL.PHOENIX.TARGET pseudo does not read: give one or the other."
        )
    dicts = [d for name in cfg.DATASETS.TRAIN for d in get_detection_dataset_dicts(name, filter_empty=False)]
    return [{key: value for key, value in d.items() if key != "annotations"} for d in dicts]


def _one_each(files: tuple[str, ...], datasets: tuple[str, ...], key: str) -> tuple[str, ...]:
    if not files:
        return ("",) * len(datasets)
    if len(files) != len(datasets):
        raise ValueError(
            f"DATASETS.{key} has {len(files)} file(s) for {len(datasets)} dataset(s): give one each, or none."
        )
    return tuple(files)
