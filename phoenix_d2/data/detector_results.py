"""What detectors outside Detectron2 write, as COCO results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from phoenix_d2.data.label_maps import read_label_map
from phoenix_d2.data.mask_json import PathLike, Record, check_results, encode_mask, image_file_name, read_json

# of a soft mask; torchvision's own
_THRESHOLD = 0.5


def convert_results(
    kind: str,
    path: PathLike,
    annotations: Record,
    *,
    first_label: int | None = None,
    category_id: int | None = None,
) -> list[Record]:
    """Results of another framework as COCO results of the images of an annotation file.

    - "ultralytics": the `predictions.json` of a validation with `save_json=True`, whose image ids are the names of
      files without their ending, or numbers where those are numbers.
    - "torchvision": a dict that `torch.save` wrote, from the name of each image's file to what the model returned for
      it: "masks" (N, 1, H, W) in [0, 1], or (N, H, W) bool; "labels" (N,); "scores" (N,); "boxes" (N, 4) XYXY or none.
    - "masks": a folder of PNGs of one channel, NAME.png, or several in a folder NAME, for the image NAME.jpg (or of
      any other ending). Each value but 0 is an instance. All scores are 1.

    Args:
        kind: of `KINDS`.
        path: of the file or folder.
        annotations: checked; its images and categories are those of the results.
        first_label: labels count the categories in the order of their ids, from this one on; None where they are
            category ids.
        category_id: of "masks", which tell none; the only one that there is when None.

    Returns:
        Checked results with the image and category ids of `annotations`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not as described, or names images or categories that `annotations` lacks.
    """
    if (first_label if kind == "masks" else category_id) is not None:
        raise ValueError("Masks have a category and no labels (--category), detectors have labels (--first-label).")
    images = _Images(annotations)
    if kind == "masks":
        records = _from_masks(Path(path), images, _only_category(annotations) if category_id is None else category_id)
    else:
        records = _READERS[kind](path, images)
        if first_label is not None:
            records = _relabelled(records, sorted(each["id"] for each in annotations["categories"]), first_label, path)
    results = list(records)
    check_results(results, source=path, annotations=annotations, check_categories=True)
    return results


class _Images:
    """The images of an annotation file by all that a framework may call them."""

    def __init__(self, annotations: Record) -> None:
        self.records: list[Record] = annotations["images"]
        self.ids: dict[str | int, set[Any]] = defaultdict(set)
        for image in self.records:
            file = PurePosixPath(image_file_name(image))
            names: set[str | int] = {str(file), str(file.with_suffix("")), file.name, file.stem}
            if file.stem.isdecimal():
                names.add(int(file.stem))
            for name in names:
                self.ids[name].add(image["id"])

    def id_of(self, name: Any, source: PathLike) -> Any:
        ids = self.ids.get(name, set())
        if len(ids) != 1:
            raise ValueError(
                f"{source}: {f'{len(ids)} images are' if ids else 'no image is'} called {name!r} among the "
                f"{len(self.records)} of the annotation file. Use the one of the images that were segmented, in which "
                "the names of files differ by more than folder and ending."
            )
        return next(iter(ids))


def _from_ultralytics(path: PathLike, images: _Images) -> Iterator[Record]:
    data = read_json(path)
    if not isinstance(data, list) or not all(
        isinstance(each, dict) and {"image_id", "category_id"} <= each.keys() for each in data
    ):
        raise ValueError(f"{path}: expected a list of results, as ultralytics writes in predictions.json. Pass that.")
    for result in data:
        yield result | {"image_id": images.id_of(result["image_id"], path)}


def _from_torchvision(path: PathLike, images: _Images) -> Iterator[Record]:
    for name, output in tqdm(_load(path).items(), desc="convert", unit="image", disable=None):
        image_id = images.id_of(name, path)
        shapes = {key: tuple(value.shape) for key, value in output.items() if isinstance(value, Tensor)}
        if not _is_prediction(shapes):
            raise ValueError(
                f"{path}: {name}: tensors of {shapes}; expected masks (N, 1, H, W) or (N, H, W), labels (N,), scores "
                "(N,) and, if any, boxes (N, 4). Save what a model that predicts masks returned."
            )
        masks = output["masks"].reshape(-1, *shapes["masks"][-2:]) > _THRESHOLD
        for i, mask in enumerate(masks.numpy()):
            label, score = int(output["labels"][i]), float(output["scores"][i])
            record = {"image_id": image_id, "category_id": label, "score": score}
            if "boxes" in shapes:
                x0, y0, x1, y1 = output["boxes"][i].tolist()
                record["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            yield record | {"segmentation": encode_mask(mask)}


def _is_prediction(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    match shapes:
        case {"masks": (num, 1, _, _) | (num, _, _), "labels": labels, "scores": scores}:
            return labels == scores == (num,) and shapes.get("boxes", (num, 4)) == (num, 4)
    return False


def _load(path: PathLike) -> Mapping[str, Any]:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path}: cannot be loaded as tensors alone. Write {{file name: output of the model}} by torch.save."
        ) from error
    if not isinstance(data, dict) or not all(isinstance(output, dict) for output in data.values()):
        raise ValueError(f"{path}: expected a dict from the names of files to dicts of tensors. Save it in that form.")
    return data


def _from_masks(folder: Path, images: _Images, category_id: int) -> Iterator[Record]:
    paths = sorted(folder.rglob("*.png"))
    if not paths:
        raise ValueError(f"{folder} holds no PNG: pass the folder of the masks.")
    for path in tqdm(paths, desc="convert", unit="file", disable=None):
        name = path.parent.relative_to(folder).as_posix()
        image_id = images.id_of(path.stem if name == "." else name, path)
        labels = read_label_map(path)
        for label in np.unique(labels[labels != 0]):
            segmentation = encode_mask(labels == label)
            yield {"image_id": image_id, "category_id": category_id, "score": 1.0, "segmentation": segmentation}


def _only_category(annotations: Record) -> Any:
    ids = [category["id"] for category in annotations["categories"]]
    if len(ids) != 1:
        raise ValueError(f"The annotation file has {len(ids)} categories: say of which one the masks are (--category).")
    return ids[0]


def _relabelled(records: Iterator[Record], ids: list[Any], first_label: int, source: PathLike) -> Iterator[Record]:
    id_of = dict(enumerate(ids, first_label))
    for record in records:
        if record["category_id"] not in id_of:
            raise ValueError(
                f"{source}: label {record['category_id']!r} is none of the {len(ids)} categories, counted from "
                f"{first_label}. Use the annotation file of the detector's classes, or another --first-label."
            )
        yield record | {"category_id": id_of[record["category_id"]]}


_READERS: Mapping[str, Callable[[PathLike, _Images], Iterator[Record]]] = {
    "ultralytics": _from_ultralytics,
    "torchvision": _from_torchvision,
}
KINDS = (*_READERS, "masks")
"""Formats that `convert_results` reads."""
