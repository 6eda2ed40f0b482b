"""Datasets by name: folders of a COCO-style JSON and its images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

# beyond what Detectron2 keeps of an annotation: its id pairs it with a model's mask of it
_EXTRA_KEYS = ["id", "area"]


def register_folders(names: Iterable[str]) -> None:
    """Register each name that is no dataset yet but a folder with `instances.json` and `images/`.

    So `DATASETS.TRAIN` and `DATASETS.TEST` may name folders directly.

    Raises:
        ValueError: a name is neither registered nor such a folder.
    """
    for name in names:
        if name in DatasetCatalog:
            continue
        folder = Path(name)
        if not (folder / "instances.json").is_file():
            raise ValueError(
                f"Unknown dataset {name!r}: it is not registered, nor a folder with instances.json and images/. "
                "For Detectron2's own datasets set DETECTRON2_DATASETS to the folder that holds them."
            )
        register_json(name, str(folder / "instances.json"), str(folder / "images"))


def register_json(name: str, json_file: str, image_root: str, *, evaluator_type: str = "coco") -> None:
    """Register a COCO-style JSON (LVIS' is one) under a name; annotations keep their "id" and "area".

    Args:
        name: to be used in `DATASETS`.
        json_file: annotations.
        image_root: folder that the JSON's `file_name` are relative to.
        evaluator_type: "coco" or "lvis", the protocol of `tools/train_net.py --eval-only`.
    """
    DatasetCatalog.register(
        name, lambda: load_coco_json(json_file, image_root, name, extra_annotation_keys=_EXTRA_KEYS)
    )
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type=evaluator_type)
