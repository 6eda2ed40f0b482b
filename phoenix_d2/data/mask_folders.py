"""Folders of images and of PNG masks, one mask an image: binary data sets, and what models make of them.

An image and its mask have the same name but for the ending, and a suffix where a data set gives its masks one
(ISIC_0000000.jpg, ISIC_0000000_segmentation.png).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from phoenix_d2.data.images import find_images, open_image, read_image, read_image_size
from phoenix_d2.data.label_maps import write_label_map
from phoenix_d2.data.mask_json import Record, mask_fields
from phoenix_d2.files import listed


class MaskPair(NamedTuple):
    """An image, or another mask, and its mask.

    Attributes:
        name: that both files have, without ending and suffix.
        image: path of the image.
        mask: path of the PNG.
    """

    name: str
    image: Path
    mask: Path


def pair_masks(
    image_folder: str | Path, mask_folder: str | Path, *, suffix: str = "", names: Collection[str] | None = None
) -> list[MaskPair]:
    """Images and their masks, by name.

    Args:
        image_folder: of images of any kind, whose names may have the suffix too; other files in it do not count.
        mask_folder: of PNG masks.
        suffix: at the end of the masks' names, before ".png".
        names: of the pairs wanted; all files of both folders when None.

    Raises:
        ValueError: a folder is missing or empty, a name is ambiguous, or an image or a mask lacks its counterpart.
    """
    images = _by_name(image_folder, find_images(image_folder), suffix)
    files = sorted(Path(mask_folder).rglob("*"))
    paths = [path for path in files if path.suffix.lower() == ".png" and path.stem.endswith(suffix)]
    masks = _by_name(mask_folder, paths, suffix)
    wanted = images.keys() | masks.keys() if names is None else set(names)
    problems = [f"{name}: no {name}{suffix}.png in {mask_folder}" for name in sorted(wanted - masks.keys())]
    problems += [f"{name}{suffix}.png: no {name} in {image_folder}" for name in sorted(wanted - images.keys())]
    if problems:
        raise ValueError(
            f"{len(problems)} file(s) do not pair up:{listed(problems)}\nName the folders of the same set, and the "
            "suffix that its masks' names have, if any."
        )
    return [MaskPair(name, images[name], masks[name]) for name in sorted(wanted)]


def read_mask(path: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Read a mask: 1 bit, or grey values of 8 or 16 bits, of which those of at least half of white are inside.

    Args:
        path: of the file.
        size: (height, width) that it must have; any when None.

    Returns:
        (H, W) bool.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, of another size, coloured or transparent, or its values are labels.
    """
    with open_image(path) as image:
        if "A" in image.getbands() and np.asarray(image.getchannel("A")).min() < 255:
            raise ValueError(f"{path} has its shape in the alpha channel, a mask is grey: export that channel alone.")
    pixels = read_image(path)
    if size is not None and pixels.shape[:2] != size:
        raise ValueError(
            f"{path} is {pixels.shape[0]} x {pixels.shape[1]} (height x width), its image is {size[0]} x {size[1]}: "
            "resize the mask to its image."
        )
    grey = pixels[..., 0]
    if (pixels != grey[..., None]).any():
        raise ValueError(f"{path} is coloured, a mask is grey: export it in black and white.")
    values = np.unique(grey)
    # many values below half of white are a soft map that found nothing
    if len(values) <= 2 and 0 < values[-1] < 128:
        raise ValueError(
            f"{path} has no value but {' and '.join(map(str, values))}, a mask has 0 and 255: scale it, or take the "
            "label that is meant."
        )
    inside: NDArray[np.bool_] = grey >= 128
    return inside


def write_mask(path: str | Path, mask: NDArray[np.bool_]) -> None:
    """Write an (H, W) bool mask as a PNG of 0 and 255, all or nothing. Parent folders are created."""
    write_label_map(path, mask.astype(np.uint8) * np.uint8(255))


def load_annotations_of(pairs: Sequence[MaskPair]) -> Record:
    """The content of a COCO annotation file for pairs of images and masks: one category, one annotation a pair.

    Image ids are the names. An empty mask has an annotation too, of area 0.

    Args:
        pairs: see `pair_masks`.

    Raises:
        ValueError: a file is damaged, or a mask is none or not of its image's size.
    """
    images: list[Record] = []
    annotations: list[Record] = []
    # decoding PNG takes most of the time, and releases the interpreter
    with ThreadPoolExecutor() as pool:
        masks = list(tqdm(pool.map(_read_pair, pairs), "reading masks", len(pairs), unit="mask", disable=None))
    for pair, (size, fields) in zip(pairs, masks, strict=True):
        images.append({"id": pair.name, "file_name": str(pair.image), "height": size[0], "width": size[1]})
        annotations.append({"id": len(images), "image_id": pair.name, "category_id": 1, "iscrowd": 0} | fields)
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def load_mask_dataset(
    image_folder: str | Path, mask_folder: str | Path, *, suffix: str = "", list_file: str | Path | None = None
) -> list[Record]:
    """Detectron2's standard dicts of a folder of images and one of masks; annotations are as in COCO's JSON.

    Args:
        image_folder: of images.
        mask_folder: of PNG masks.
        suffix: of the masks' names, see `pair_masks`.
        list_file: names of the images of a split, one a line, with or without ending; all when None.

    Raises:
        OSError: the list cannot be opened.
        ValueError: files do not pair up, are damaged, or differ in size.
    """
    names = None
    if list_file is not None:
        names = [_image_name(line) for line in map(str.strip, Path(list_file).read_text().splitlines()) if line]
    content = load_annotations_of(pair_masks(image_folder, mask_folder, suffix=suffix, names=names))
    return [
        {"file_name": image["file_name"], "image_id": image["id"], "height": image["height"], "width": image["width"]}
        | {"annotations": [{**annotation, "category_id": 0}] if annotation["area"] else []}
        for image, annotation in zip(content["images"], content["annotations"], strict=True)
    ]


def _image_name(line: str) -> str:
    """The name of an image without its ending, if it has one: other dots belong to the name."""
    path = Path(line)
    return path.stem if path.suffix.lower() in Image.registered_extensions() else path.name


def _read_pair(pair: MaskPair) -> tuple[tuple[int, int], Record]:
    size = read_image_size(pair.image)
    return size, mask_fields(read_mask(pair.mask, size))


def _by_name(folder: str | Path, paths: Iterable[Path], suffix: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        name = path.stem.removesuffix(suffix)
        if name in found:
            raise ValueError(f"{found[name]} and {path} have the same name: keep one of them.")
        found[name] = path
    if not found:
        raise ValueError(f"{folder} holds no images, or no *{suffix}.png: name the folder that does.")
    return found
