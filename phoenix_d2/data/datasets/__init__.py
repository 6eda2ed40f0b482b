"""Datasets by name: folders of images with a COCO-style JSON, with PNG masks or alone, and published data sets."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import get_lvis_instances_meta, load_coco_json, load_lvis_json
from detectron2.structures import BoxMode

from phoenix_d2.data.datasets.binary import PUBLISHED, MaskFolders
from phoenix_d2.data.datasets.image_folder import load_image_folder
from phoenix_d2.data.images import check_images, find_images
from phoenix_d2.data.mask_json import complete_annotation, image_file_name, image_sizes, load_annotations

# beyond what Detectron2 keeps of an annotation: its id pairs it with a model's mask of it
_EXTRA_KEYS = ["id", "area"]


def register_folders(names: Iterable[str]) -> None:
    """Register each name that is no dataset yet but a folder of images.

    They lie in `images/` beside `instances.json` or `masks/`, PNG of one mask an image; or there are images alone. So
    `DATASETS.TRAIN` and `DATASETS.TEST` may name folders directly. Images alone do for training towards targets that
    the decoder finds itself (`MODEL.PHOENIX.TARGET` "pseudo").

    An annotation file in a folder is checked whole, and its images are.

    Raises:
        FileNotFoundError: a name is registered, and its annotation file is missing.
        ValueError: a name is neither registered nor such a folder, its annotation file is malformed, or images of it
            are missing or of another size.
    """
    for name in names:
        if name in DatasetCatalog:
            _check_annotations(name)
            continue
        folder = Path(name)
        if (folder / "instances.json").is_file():
            _check_folder(folder)
            register_json(name, str(folder / "instances.json"), str(folder / "images"))
        elif (folder / "images").is_dir() and (folder / "masks").is_dir():
            register_masks(name, MaskFolders("images", "masks"), folder)
        elif find_images(folder):
            DatasetCatalog.register(name, partial(load_image_folder, folder))
        else:
            raise ValueError(
                f"Unknown dataset {name!r}: it is not registered, nor a folder with images/ and instances.json or "
                "masks/, nor one of images. For published ones set DETECTRON2_DATASETS to the folder that holds them."
            )


def _check_annotations(name: str) -> None:
    """Find out before training that evaluation lacks its file."""
    json_file = MetadataCatalog.get(name).get("json_file")
    if json_file and not Path(json_file).is_file():
        raise FileNotFoundError(
            f"{json_file}, of the dataset {name!r}, is missing: set DETECTRON2_DATASETS to the folder that holds the "
            "published data sets. docs/tasks says how they lie there, and which files a tool makes."
        )


def _check_folder(folder: Path) -> None:
    """Find out before training what is wrong with a user's own files, in which anything may be."""
    file, image_folder = folder / "instances.json", folder / "images"
    data = load_annotations(file, check_categories=True)
    for key in ("images", "annotations", "categories"):
        if strings := [record["id"] for record in data[key] if isinstance(record["id"], str)]:
            raise ValueError(f"{file}: Detectron2 takes numbers alone as ids, found {strings[0]!r}: number the {key}.")
    if unnamed := [image["id"] for image in data["images"] if "file_name" not in image]:
        raise ValueError(
            f"{file}: image id {unnamed[0]} has no 'file_name': add its path below {image_folder}. Files as LVIS "
            "publishes them are the datasets lvis_v1_train and lvis_v1_val."
        )
    sizes = image_sizes(data)
    images = ((image["id"], image_folder / image_file_name(image), sizes[image["id"]]) for image in data["images"])
    check_images(images, image_folder)


def register_json(name: str, json_file: str, image_root: str, *, evaluator_type: str = "coco") -> None:
    """Register a COCO-style JSON, whose images have a "file_name", under a name.

    Annotations keep their "id" and "area"; what they lack of "bbox", "area" and "iscrowd" comes from their masks.

    Args:
        name: to be used in `DATASETS`.
        json_file: annotations.
        image_root: folder that the JSON's `file_name` are relative to.
        evaluator_type: "coco" or "lvis", the protocol of `tools/train_net.py --eval-only`.
    """
    DatasetCatalog.register(name, partial(_load_json, json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type=evaluator_type)


def _load_json(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    samples: list[dict[str, Any]] = load_coco_json(json_file, image_root, name, extra_annotation_keys=_EXTRA_KEYS)
    for sample in samples:
        for annotation in sample["annotations"]:
            complete_annotation(annotation, (sample["height"], sample["width"]))
    return samples


def register_masks(name: str, folders: MaskFolders, root: str | Path) -> None:
    """Register folders of images and PNG masks under a name; their evaluation is that of binary masks.

    Args:
        name: to be used in `DATASETS`.
        folders: of images and masks.
        root: that they lie in.
    """
    # evaluators ask again, and reading masks takes minutes
    DatasetCatalog.register(name, cache(partial(_load_masks, folders, root)))
    MetadataCatalog.get(name).set(evaluator_type="binary_masks", thing_classes=["object"])


def _load_masks(folders: MaskFolders, root: str | Path) -> list[dict[str, Any]]:
    samples = folders.load(root)
    for annotation in (annotation for sample in samples for annotation in sample["annotations"]):
        annotation["bbox_mode"] = BoxMode.XYWH_ABS
    return samples


def register_cocofied_lvis(root: str | Path) -> None:
    """Register `lvis_v1_train_cocofied` and `lvis_v1_val_cocofied`, unless such names are taken.

    Their files are made by `tools/prepare_cocofied_lvis.py`.

    Args:
        root: folder of `lvis/` and `coco/`, as Detectron2's LVIS datasets lie in it.
    """
    for name in ("lvis_v1_train_cocofied", "lvis_v1_val_cocofied"):
        # other projects know LVIS v0.5 under such names, and may know v1
        if name in DatasetCatalog:
            continue
        json_file, image_root = str(Path(root, "lvis", f"{name}.json")), f"{Path(root, 'coco')}/"
        DatasetCatalog.register(name, partial(_load_cocofied_lvis, json_file, image_root, name))
        MetadataCatalog.get(name).set(
            json_file=json_file, image_root=image_root, evaluator_type="lvis", **get_lvis_instances_meta(name)
        )


def _load_cocofied_lvis(json_file: str, image_root: str, name: str) -> list[dict[str, Any]]:
    if not Path(json_file).is_file():
        raise FileNotFoundError(f"{json_file} is missing: tools/prepare_cocofied_lvis.py makes it.")
    return load_lvis_json(json_file, image_root, name, extra_annotation_keys=_EXTRA_KEYS)


_ROOT = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
register_cocofied_lvis(_ROOT)
for _name, _folders in PUBLISHED.items():
    register_masks(_name, _folders, _ROOT)
