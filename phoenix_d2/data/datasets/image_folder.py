"""A folder of images as a dataset without annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phoenix_d2.data.images import find_images, read_image_size


def load_image_folder(folder: str | Path) -> list[dict[str, Any]]:
    """Detectron2's standard dicts of the images of a folder; their ids are the names within it.

    Raises:
        ValueError: a file is no image.
    """
    dicts = []
    for path in find_images(folder):
        height, width = read_image_size(path)
        name = path.relative_to(folder).as_posix()
        dicts.append({"file_name": str(path), "image_id": name, "height": height, "width": width})
    return dicts
