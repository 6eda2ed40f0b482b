"""Semantic label maps: PNG files of one channel, and the JSON that Detectron2's `SemSegEvaluator` writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from phoenix_d2.data.images import open_image
from phoenix_d2.data.mask_json import PathLike, Record, decode_segmentation
from phoenix_d2.files import atomic_path

LabelMap: TypeAlias = NDArray[np.int32]
"""(H, W) labels."""

# Pillow's modes of one channel of 8 bits, plain or with a palette, and of 16
_MODES = ("L", "P", "I;16", "I;16B", "I")


def read_label_map(path: str | Path) -> LabelMap:
    """Read a PNG of labels: 8 bits, with or without a palette, or 16.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, cut short, or has several channels.
    """
    with open_image(path) as image:
        if image.mode not in _MODES:
            raise ValueError(
                f"{path} is an image of mode {image.mode}, a label map has one channel of 8 or 16 bits: convert "
                "colours to labels first."
            )
        return np.asarray(image).astype(np.int32)


def write_label_map(path: str | Path, labels: NDArray[Any], *, palette_of: str | Path | None = None) -> None:
    """Write a PNG of labels, all or nothing; 8 bits where they suffice, else 16. Parent folders are created.

    Args:
        path: of the PNG.
        labels: (H, W) integer, from 0 to 65535.
        palette_of: a PNG whose palette the new one gets, if it has one.
    """
    image = Image.fromarray(labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16))
    if palette_of is not None and image.mode == "L":
        with open_image(palette_of) as source:
            if source.mode == "P":
                palette = source.getpalette() or []
                # of fewer colours, Pillow would write fewer bits, whatever the labels are
                image.putpalette(palette + [0] * (768 - len(palette)))
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def group_records(records: Any, *, source: PathLike) -> dict[str, list[Record]]:
    """The records of a `SemSegEvaluator` file by image.

    Args:
        records: the parsed file, a list of {"file_name", "category_id", "segmentation"}.
        source: the file's name, for messages.

    Raises:
        ValueError: it is no such list.
    """
    groups: dict[str, list[Record]] = {}
    for index, record in enumerate(records if isinstance(records, list) else [None]):
        keys = ("file_name", "category_id", "segmentation")
        if not isinstance(record, Mapping) or not all(key in record for key in keys):
            raise ValueError(
                f"{source}: record {index} (counted from 0): expected a list of dicts with "
                f"{', '.join(map(repr, keys))}, as Detectron2's SemSegEvaluator writes it."
            )
        if type(record["category_id"]) is not int or not 0 <= record["category_id"] < 2**16:
            raise ValueError(
                f"{source}: record {index} (counted from 0): category_id must be an integer from 0 to 65535, found "
                f"{record['category_id']!r}. Map the ids."
            )
        groups.setdefault(str(record["file_name"]), []).append(dict(record))
    return groups


def label_map_of_records(records: Iterable[Record], size: tuple[int, int], *, void: int) -> LabelMap:
    """The label map of one image.

    Args:
        records: of the image.
        size: (height, width) in pixels.
        void: label of the pixels that are in no record.

    Raises:
        ValueError: a segmentation does not decode, is of another size, or two share pixels.
    """
    labels = np.full(size, void, np.int32)
    covered = np.zeros(size, bool)
    for record in records:
        where = f"{record['file_name']}, category id {record['category_id']}"
        try:
            mask = decode_segmentation(record["segmentation"], *size)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if (mask & covered).any():
            raise ValueError(f"{where}: shares pixels with another category: a label map has one label a pixel.")
        covered |= mask
        labels[mask] = record["category_id"]
    return labels
