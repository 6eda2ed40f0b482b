"""Cityscapes' instances, from the layout that its publisher ships, as a COCO-style annotation file.

`gtFine/SPLIT/CITY/*_gtFine_instanceIds.png` holds 16-bit pixels: label id x 1000 + number for an object, the label id
alone for a group that could not be told apart. `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` are the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from phoenix_d2.data.images import read_image_size
from phoenix_d2.data.mask_json import Record, mask_fields

CLASSES = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""Names of the classes whose instances are evaluated, by Cityscapes' own label ids."""

_INSTANCES, _IMAGE = "_gtFine_instanceIds.png", "_leftImg8bit.png"
_GROUP = 1000


def cityscapes_annotations(
    root: str | Path, split: str, *, progress: Callable[[list[Path]], Iterable[Path]] = iter
) -> Record:
    """The instances of a split as a COCO annotation file with exact masks.

    Args:
        root: folder with `gtFine` and `leftImg8bit`.
        split: such as "val".
        progress: wraps the list of files while they are read, as `tqdm` does.

    Returns:
        "images" with a `file_name` relative to `leftImg8bit/SPLIT`, "annotations" with compressed RLE, groups as
        crowd, and "categories" with Cityscapes' label ids. Ids of images and annotations count from 1.

    Raises:
        ValueError: there are no such files, an image is missing or of another size, or a file is no label map.
    """
    folder = Path(root) / "gtFine" / split
    files = sorted(folder.glob(f"*/*{_INSTANCES}"))
    if not files:
        raise ValueError(f"No *{_INSTANCES} in the folders of {folder}: --root holds gtFine/ and leftImg8bit/.")
    images: list[Record] = []
    annotations: list[Record] = []
    for file in progress(files):
        labels = _read_labels(file)
        name = f"{file.parent.name}/{file.name.removesuffix(_INSTANCES)}{_IMAGE}"
        image_file = Path(root) / "leftImg8bit" / split / name
        if not image_file.is_file() or read_image_size(image_file) != labels.shape:
            raise ValueError(f"{image_file} is missing, or of another size than {file}: unpack leftImg8bit again.")
        height, width = labels.shape
        images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})
        for value in np.unique(labels).tolist():
            category = value // _GROUP if value >= _GROUP else value
            if category in CLASSES:
                fields = {"id": len(annotations) + 1, "image_id": len(images), "category_id": category}
                annotations.append(fields | mask_fields(labels == value) | {"iscrowd": int(value < _GROUP)})
    categories = [{"id": category, "name": name} for category, name in CLASSES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _read_labels(path: Path) -> NDArray[np.uint16]:
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None or labels.dtype != np.uint16 or labels.ndim != 2:
        raise ValueError(f"{path} is no 16-bit label map: unpack gtFine again.")
    return np.asarray(labels, np.uint16)
