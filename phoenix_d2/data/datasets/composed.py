"""A dataset made of another: its photographs, with cut-out objects and drawn shapes laid over them.

Annotated outlines miss the object's by some pixels; those of what is laid over are exact. Simple
copy-paste (Ghiasi et al. 2021) of objects, and shapes filled with pieces of other photographs, whose
outlines no knowledge of objects gives away.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from phoenix_d2.data.datasets.shapes import Array, Mask, Shape, draw_category, finds_room, paint, rasterise
from phoenix_d2.data.images import read_image
from phoenix_d2.data.mask_json import (
    complete_annotation,
    decode_segmentation,
    image_file_name,
    image_sizes,
    load_annotations,
    mask_fields,
)
from phoenix_d2.ops.windows import box_window

_MIN_AREA = 256
_TRIES_PER_OBJECT = 4
# of what is laid over a photograph, as shares of its shorter side
_DIAMETER = (0.12, 0.7)
# standard deviation of the blur across a pasted outline, in pixels
_SOFTNESS = (0.3, 1.2)


@dataclass(frozen=True)
class _Photograph:
    path: Path
    size: tuple[int, int]
    annotations: list[dict[str, Any]]

    def objects(self) -> list[dict[str, Any]]:
        """Annotations of single objects that are large enough to be worth pasting."""
        return [a for a in self.annotations if not a.get("iscrowd", 0) and a["bbox"][2] * a["bbox"][3] > 4 * _MIN_AREA]


def compose_dataset(
    folder: str | Path,
    sources: Sequence[str | Path],
    *,
    num_images: int,
    objects: tuple[int, int] = (3, 7),
    seed: int = 0,
) -> None:
    """Write composed pictures and their annotations into a new folder.

    Args:
        folder: gets `images/*.jpg` and `instances.json`; appears whole or not at all.
        sources: folders of `images/` and `instances.json`, COCO or LVIS style.
        num_images: how many pictures.
        objects: least and most objects laid over a photograph; fewer where no more find room.
        seed: of all randomness; picture i depends on it and on i alone.

    Raises:
        FileExistsError: the folder exists.
        FileNotFoundError: a source lacks its annotations, or an image that they list.
        ValueError: a source is damaged, or no annotation in them can be pasted.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: name a new folder.")
    photographs = [photograph for source in sources for photograph in _photographs(Path(source))]
    donors = [photograph for photograph in photographs if photograph.objects()]
    if not donors:
        raise ValueError(
            f"No annotation in {', '.join(map(str, sources))} is of a single object of {_MIN_AREA} pixels."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        composed = Path(scratch, "composed")
        (composed / "images").mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in tqdm(range(num_images), unit="picture", disable=None):
            rng = np.random.default_rng([seed, index])
            picture, masks = _compose(photographs[rng.integers(len(photographs))], donors, photographs, rng, objects)
            name = f"{index + 1:06d}.jpg"
            path = composed / "images" / name
            if not cv2.imwrite(str(path), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95]):
                raise OSError(f"could not write {path}")
            images.append({"id": index + 1, "file_name": name, "height": picture.shape[0], "width": picture.shape[1]})
            for mask in masks:
                place = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": 1, "iscrowd": 0}
                annotations.append(place | mask_fields(mask))
        categories = [{"id": 1, "name": "object"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (composed / "instances.json").write_text(json.dumps(content))
        composed.rename(folder)


def _photographs(source: Path) -> list[_Photograph]:
    data = load_annotations(source / "instances.json")
    sizes = image_sizes(data)
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for annotation in data["annotations"]:
        complete_annotation(annotation, sizes[annotation["image_id"]])
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    return [
        _Photograph(
            source / "images" / image_file_name(image),
            (image["height"], image["width"]),
            by_image.get(image["id"], []),
        )
        for image in data["images"]
    ]


def _compose(
    background: _Photograph,
    donors: list[_Photograph],
    textures: list[_Photograph],
    rng: np.random.Generator,
    objects: tuple[int, int],
) -> tuple[NDArray[np.uint8], list[Mask]]:
    """One picture, (H, W, 3) uint8, and the (H, W) masks of what can be seen of its objects."""
    canvas = read_image(background.path).astype(np.float32)
    size = (canvas.shape[0], canvas.shape[1])
    # 0 is the background; what comes later lies in front
    owner = np.zeros(size, np.int32)
    annotated = [
        decode_segmentation(annotation["segmentation"], *size)
        for annotation in background.annotations
        if not annotation.get("iscrowd", 0)
    ]
    for index, mask in enumerate(annotated, start=1):
        owner[mask] = index
    areas = [0, *(int(mask.sum()) for mask in annotated)]
    first_pasted = len(areas)
    wanted = int(rng.integers(*objects, endpoint=True))
    for _ in range(_TRIES_PER_OBJECT * wanted):
        if len(areas) - first_pasted == wanted:
            break
        if rng.random() < 0.5:
            shape, fill = _cut_object(donors[rng.integers(len(donors))], size, rng)
        else:
            shape = rasterise(draw_category(rng).outline(rng), size, rng, _DIAMETER)
            fill = _texture(textures[rng.integers(len(textures))], shape.size, rng)
        if not finds_room(shape, owner, _at_least_seen(owner, areas), _MIN_AREA):
            continue
        owner[shape.window][shape.mask] = len(areas)
        areas.append(int(shape.mask.sum()))
        paint(canvas, _softened(shape, rng), fill, 1.0)
    picture = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    # annotated objects overlap one another as their annotators left them
    masks = [mask & (owner < first_pasted) for mask in annotated]
    masks += [owner == index for index in range(first_pasted, len(areas))]
    # an annotated object of which most is hidden may be no object any more
    visible_enough = [mask.sum() >= max(_MIN_AREA, area / 2) for mask, area in zip(masks, areas[1:], strict=True)]
    return picture, [mask for mask, enough in zip(masks, visible_enough, strict=True) if enough]


def _at_least_seen(owner: NDArray[np.int32], areas: list[int]) -> list[int]:
    """What `finds_room` may not hide: of small objects of the photograph nothing is asked, they may vanish."""
    visible = np.bincount(owner.ravel(), minlength=len(areas))
    return [0 if seen < 4 * _MIN_AREA else area for seen, area in zip(visible.tolist(), areas, strict=True)]


def _cut_object(donor: _Photograph, size: tuple[int, int], rng: np.random.Generator) -> tuple[Shape, Array]:
    """An object of another photograph, flipped or not, at a random size and place."""
    annotations = donor.objects()
    annotation = annotations[rng.integers(len(annotations))]
    mask = decode_segmentation(annotation["segmentation"], *donor.size)
    window = box_window(mask)
    pixels: NDArray[Any] = read_image(donor.path)[window]
    coverage: NDArray[Any] = mask[window].astype(np.float32)
    diameter = np.exp(rng.uniform(*np.log(_DIAMETER))) * min(size)
    # beyond twice its size, an object is blurred and gives itself away
    scale = min(diameter / max(coverage.shape), 2.0)
    height, width = (min(max(round(side * scale), 1), limit) for side, limit in zip(coverage.shape, size, strict=True))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    step = -1 if rng.random() < 0.5 else 1
    pixels, coverage = (
        np.ascontiguousarray(cv2.resize(x, (width, height), interpolation=interpolation)[:, ::step]).astype(np.float32)
        for x in (pixels, coverage)
    )
    y, x = rng.integers(size[0] - height + 1), rng.integers(size[1] - width + 1)
    return Shape((slice(y, y + height), slice(x, x + width)), coverage), pixels


def _texture(source: _Photograph, size: tuple[int, int], rng: np.random.Generator) -> Array:
    """A piece of a photograph, (h, w, 3) float32, at its own scale where it is large enough."""
    pixels: NDArray[Any] = read_image(source.path)
    scale = max(size[0] / pixels.shape[0], size[1] / pixels.shape[1], 1.0)
    if scale > 1:
        width, height = int(np.ceil(pixels.shape[1] * scale)), int(np.ceil(pixels.shape[0] * scale))
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    y, x = rng.integers(pixels.shape[0] - size[0] + 1), rng.integers(pixels.shape[1] - size[1] + 1)
    return pixels[y : y + size[0], x : x + size[1]].astype(np.float32)


def _softened(shape: Shape, rng: np.random.Generator) -> Shape:
    """The same shape, its outline blurred as a lens would."""
    # outside its window, a shape covers nothing
    coverage = cv2.GaussianBlur(shape.coverage, (0, 0), rng.uniform(*_SOFTNESS), borderType=cv2.BORDER_CONSTANT)
    return Shape(shape.window, coverage.astype(np.float32))
