"""A dataset that the program draws itself: exact masks of soft-edged, textured, overlapping shapes.

Whoever has no images at hand can train and try the refiner on it. Its annotations are COCO instances with LVIS' extra
fields, so that both styles of evaluation run.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from phoenix_d2.data.datasets.shapes import CATEGORIES, Array, Mask, draw_category, finds_room, paint, rasterise
from phoenix_d2.data.mask_json import mask_fields

_STAMP_NAME = "drawn.json"
# raised whenever the same parameters would draw other pictures
_DRAWING_VERSION = 1
_TRIES_PER_OBJECT = 5


@dataclass(frozen=True)
class DrawingStyle:
    """How crowded, how clear and how clean the pictures are. Ranges are (least, most), both included.

    Attributes:
        objects: objects in a picture; a few less where no more find room.
        clutter: translucent shapes behind the objects that belong to no object.
        diameter: of an object, as a share of the picture's shorter side; small ones are as likely as large ones.
        texture: strength of the patterns within objects and background, in grey levels of 255.
        blur: standard deviation of the blur over the whole picture, in pixels.
        noise: standard deviation of the noise of each pixel, in grey levels.
        min_visible_area: least visible area of an object, in pixels.
    """

    objects: tuple[int, int] = (4, 9)
    clutter: tuple[int, int] = (6, 14)
    diameter: tuple[float, float] = (0.14, 0.75)
    texture: tuple[float, float] = (10.0, 70.0)
    blur: tuple[float, float] = (0.3, 1.0)
    noise: tuple[float, float] = (2.0, 10.0)
    min_visible_area: int = 64


class DrawnDataset(NamedTuple):
    """Where a drawn dataset lies."""

    image_folder: Path
    annotation_file: Path


class DrawnObject(NamedTuple):
    """One object of a picture: its category's name and its visible pixels, (H, W) bool."""

    category: str
    mask: Mask


def draw_dataset(
    folder: str | Path,
    *,
    num_images: int,
    image_size: tuple[int, int] = (256, 256),
    seed: int = 0,
    style: DrawingStyle | None = None,
) -> DrawnDataset:
    """Draw pictures and their annotations into a folder, unless just these are there already.

    The folder appears whole or not at all. One that holds another drawing is replaced. Picture i depends on the seed
    and i alone, so that a longer drawing begins with the pictures of a shorter one.

    Args:
        folder: gets `images/*.jpg`, `instances.json` and the stamp `drawn.json`.
        num_images: how many pictures.
        image_size: (height, width) in pixels.
        seed: of all randomness.
        style: the looks; the default style when None.

    Returns:
        The paths of the images and of the annotations.

    Raises:
        ValueError: a size or count cannot be drawn, or the folder holds files that no drawing left there.
    """
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}: expected at least 1.")
    if min(image_size) < 32:
        raise ValueError(f"image_size is {image_size}: expected a height and a width of at least 32 pixels.")
    if seed < 0:
        raise ValueError(f"seed is {seed}: expected 0 or more.")
    folder, style = Path(folder), style or DrawingStyle()
    parameters = {
        "version": _DRAWING_VERSION,
        "num_images": num_images,
        "image_size": image_size,
        "seed": seed,
        "style": asdict(style),
    }
    stamp = json.dumps(parameters, indent=2)
    if not _holds_drawing(folder, stamp):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            drawing = Path(scratch, "drawing")
            _write_drawing(drawing, num_images, image_size, seed, style)
            (drawing / _STAMP_NAME).write_text(stamp)
            if folder.exists():
                folder.rename(Path(scratch, "previous"))
            drawing.rename(folder)
    return DrawnDataset(folder / "images", folder / "instances.json")


def draw_picture(
    image_size: tuple[int, int], *, rng: np.random.Generator, style: DrawingStyle
) -> tuple[NDArray[np.uint8], list[DrawnObject]]:
    """Draw one picture.

    Args:
        image_size: (height, width) in pixels.
        rng: the source of all randomness.
        style: the looks.

    Returns:
        The picture, (H, W, 3) uint8, and its objects from back to front; their masks do not overlap.
    """
    palette = [_colour(rng, away_from=[])]
    canvas = _fill(image_size, palette[0], rng, style)
    for _ in range(rng.integers(*style.clutter, endpoint=True)):
        shape = rasterise(draw_category(rng).outline(rng), image_size, rng, (0.05, 0.4))
        opacity = rng.uniform(0.15, 0.5)
        paint(canvas, shape, _fill(shape.size, _colour(rng, away_from=[]), rng, style), opacity)

    owner = np.zeros(image_size, np.uint8)
    names: list[str] = []
    areas = [0]
    wanted = int(rng.integers(*style.objects, endpoint=True))
    for _ in range(_TRIES_PER_OBJECT * wanted):
        if len(names) == wanted:
            break
        category = draw_category(rng)
        shape = rasterise(category.outline(rng), image_size, rng, style.diameter)
        if not finds_room(shape, owner, areas, style.min_visible_area):
            continue
        names.append(category.name)
        areas.append(int(shape.mask.sum()))
        owner[shape.window][shape.mask] = len(names)
        palette.append(_colour(rng, away_from=palette))
        paint(canvas, shape, _fill(shape.size, palette[-1], rng, style), 1.0)

    blurred = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(*style.blur))
    noise = rng.uniform(*style.noise) * rng.standard_normal(canvas.shape, np.float32)
    picture = np.clip(np.rint(blurred + noise), 0, 255).astype(np.uint8)
    return picture, [DrawnObject(name, owner == index) for index, name in enumerate(names, start=1)]


def _holds_drawing(folder: Path, stamp: str) -> bool:
    """Whether the folder holds the drawing of this stamp; an error if it holds what is not ours to replace."""
    if (folder / _STAMP_NAME).is_file():
        return (folder / _STAMP_NAME).read_text() == stamp
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds files but no {_STAMP_NAME}: give an empty or a new folder to draw into.")
    return False


def _write_drawing(folder: Path, num_images: int, image_size: tuple[int, int], seed: int, style: DrawingStyle) -> None:
    (folder / "images").mkdir(parents=True)
    objects: list[list[DrawnObject]] = []
    for index in range(num_images):
        picture, drawn = draw_picture(image_size, rng=np.random.default_rng([seed, index]), style=style)
        path = folder / "images" / _file_name(index)
        if not cv2.imwrite(str(path), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95]):
            raise OSError(f"could not write {path}")
        objects.append(drawn)
    (folder / "instances.json").write_text(json.dumps(_annotations(objects, image_size)))


def _file_name(index: int) -> str:
    return f"{index + 1:06d}.jpg"


def _annotations(objects: list[list[DrawnObject]], image_size: tuple[int, int]) -> dict[str, Any]:
    """COCO instances of all pictures, with the fields that LVIS adds."""
    ids = {category.name: index for index, category in enumerate(CATEGORIES, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, drawn in enumerate(objects):
        image_id = index + 1
        present = {ids[name] for name, _ in drawn}
        images.append(
            {
                "id": image_id,
                "file_name": _file_name(index),
                "height": image_size[0],
                "width": image_size[1],
                # everything drawn is annotated, so every other category is known to be absent
                "neg_category_ids": sorted(set(ids.values()) - present),
                "not_exhaustive_category_ids": [],
            }
        )
        for name, mask in drawn:
            place = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[name], "iscrowd": 0}
            annotations.append(place | mask_fields(mask))
    categories = [
        {
            "id": ids[category.name],
            "name": category.name,
            "frequency": category.frequency,
            "image_count": sum(any(name == category.name for name, _ in drawn) for drawn in objects),
            "instance_count": sum(name == category.name for drawn in objects for name, _ in drawn),
        }
        for category in CATEGORIES
    ]
    info = {"description": "Shapes drawn by phoenix_d2"}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def _colour(rng: np.random.Generator, away_from: list[Array]) -> Array:
    """A colour, (3,) in grey levels; of a few drawn ones the one that differs most from those already there."""
    greys, hues = rng.uniform(30, 225, (6, 1)), rng.uniform(0, 255, (6, 3))
    candidates = (greys + rng.uniform(0.2, 0.8, (6, 1)) * (hues - greys)).astype(np.float32)
    if not away_from:
        return candidates[0]
    distances = np.linalg.norm(candidates[:, None] - np.stack(away_from), axis=2)
    return candidates[distances.min(axis=1).argmax()]


def _fill(size: tuple[int, int], colour: Array, rng: np.random.Generator, style: DrawingStyle) -> Array:
    """A patterned patch, (h, w, 3) in grey levels, that varies about a colour."""
    pattern = _PATTERNS[rng.integers(len(_PATTERNS))](size, rng)
    variation = rng.standard_normal(3, np.float32)
    variation *= rng.uniform(*style.texture) / np.linalg.norm(variation)
    return colour + (pattern - 0.5)[..., None] * (2 * variation)


def _slope(size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Each pixel's distance along a random direction, in pixels."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.arange(size[0], dtype=np.float32)[:, None], np.arange(size[1], dtype=np.float32)
    return np.float32(np.cos(angle)) * columns + np.float32(np.sin(angle)) * rows


def _gradient(size: tuple[int, int], rng: np.random.Generator) -> Array:
    slope = _slope(size, rng)
    slope -= slope.min()
    return slope / max(float(slope.max()), 1.0)


def _stripes(size: tuple[int, int], rng: np.random.Generator) -> Array:
    period, phase = rng.uniform(5, 24), rng.uniform(0, 2 * np.pi)
    return 0.5 + 0.5 * np.sin(_slope(size, rng) * np.float32(2 * np.pi / period) + np.float32(phase))


def _checks(size: tuple[int, int], rng: np.random.Generator) -> Array:
    return np.abs(_stripes(size, rng) - _stripes(size, rng))


def _clouds(size: tuple[int, int], rng: np.random.Generator) -> Array:
    grain = rng.uniform(4, 40)
    cells = tuple(max(2, round(side / grain)) for side in size)
    coarse = rng.random(cells, np.float32)
    return np.clip(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC), 0, 1)


_PATTERNS = (_gradient, _stripes, _checks, _clouds)
