"""The drawn dataset: exact, repeatable, and of the looks that were asked for."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO

from phoenix_d2.data.datasets.drawn import DrawingStyle, draw_dataset, draw_picture

SIZE = (96, 128)
PLAIN = DrawingStyle(clutter=(0, 0), texture=(0.0, 0.0), blur=(0.1, 0.1), noise=(0.0, 0.0))


def draw(seed: int, style: DrawingStyle = PLAIN) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    picture, objects = draw_picture(SIZE, rng=np.random.default_rng(seed), style=style)
    return picture, [drawn.mask for drawn in objects]


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> COCO:
    folder = tmp_path_factory.mktemp("drawn") / "train"
    return COCO(str(draw_dataset(folder, num_images=12, image_size=SIZE, seed=1).annotation_file))


def test_masks_boxes_and_areas_agree(drawing: COCO) -> None:
    assert drawing.anns
    for annotation in drawing.anns.values():
        mask = drawing.annToMask(annotation)
        assert mask.shape == SIZE
        assert mask.sum() == annotation["area"] >= DrawingStyle().min_visible_area
        x, y, width, height = map(int, annotation["bbox"])
        assert mask[y : y + height, x : x + width].sum() == annotation["area"]
        assert mask[y].any() and mask[y + height - 1].any() and mask[:, x].any() and mask[:, x + width - 1].any()


def test_visible_masks_do_not_overlap() -> None:
    for seed in range(8):
        assert np.sum(draw(seed)[1], axis=0).max() <= 1


def test_objects_hide_each_other() -> None:
    """A whole disk is convex, so one that is not is partly hidden."""
    crowded = DrawingStyle(objects=(9, 9), diameter=(0.5, 0.7))
    pictures = [draw_picture(SIZE, rng=np.random.default_rng(seed), style=crowded)[1] for seed in range(8)]
    solidity = [_solidity(drawn.mask) for objects in pictures for drawn in objects if drawn.category == "disk"]
    assert min(solidity) < 0.9


def _solidity(mask: NDArray[np.bool_]) -> float:
    points = np.argwhere(mask).astype(np.int32)
    return float(mask.sum() / cv2.contourArea(cv2.convexHull(points)))


def test_pictures_show_what_the_masks_say() -> None:
    """Without texture, blur and noise each object is one colour inside its outline, and it differs from outside."""
    for seed in range(20):
        picture, masks = draw(seed)
        for mask in masks:
            inside, rim = _grow(mask, -2), _grow(mask, 3) & ~_grow(mask, 2)
            if inside.any():
                colour = np.median(picture[inside], axis=0)
                # all but where the tip of another shape covers less than half of a pixel
                assert np.mean(np.abs(picture[inside] - colour).max(axis=1) <= 2) > 0.98
                assert np.median(np.abs(picture[rim] - colour).max(axis=1)) > 10


def _grow(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    change = cv2.dilate if pixels > 0 else cv2.erode
    return change(mask.astype(np.uint8), np.ones((3, 3)), iterations=abs(pixels)).astype(bool)


def test_rings_have_holes_and_some_objects_touch_the_border(drawing: COCO) -> None:
    (ring,) = drawing.getCatIds(catNms=["ring"])
    rings = [drawing.annToMask(annotation) for annotation in drawing.loadAnns(drawing.getAnnIds(catIds=[ring]))]
    hierarchies = [cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[1] for mask in rings]
    assert any((hierarchy[0, :, 3] >= 0).any() for hierarchy in hierarchies)
    masks = [drawing.annToMask(annotation) for annotation in drawing.anns.values()]
    assert any(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any() for mask in masks)


def test_lvis_fields(drawing: COCO) -> None:
    assert {category["frequency"] for category in drawing.cats.values()} == {"r", "c", "f"}
    for image in drawing.imgs.values():
        present = {annotation["category_id"] for annotation in drawing.imgToAnns[image["id"]]}
        assert set(image["neg_category_ids"]) == set(drawing.cats) - present
        assert image["not_exhaustive_category_ids"] == []
    for category in drawing.cats.values():
        assert category["instance_count"] == len(drawing.getAnnIds(catIds=[category["id"]]))
        assert category["image_count"] == len(set(drawing.getImgIds(catIds=[category["id"]])))


def test_image_files_hold_the_pictures_in_rgb_order(tmp_path: Path) -> None:
    drawn = draw_dataset(tmp_path / "set", num_images=2, image_size=SIZE)
    for image in json.loads(drawn.annotation_file.read_text())["images"]:
        assert (image["height"], image["width"]) == SIZE
        stored = cv2.imread(str(drawn.image_folder / image["file_name"]), cv2.IMREAD_COLOR_RGB)
        rng = np.random.default_rng([0, image["id"] - 1])
        picture, _ = draw_picture(SIZE, rng=rng, style=DrawingStyle())
        assert stored is not None and np.abs(stored.astype(float) - picture).mean() < 8


def test_the_seed_decides_and_a_longer_drawing_begins_with_the_shorter(tmp_path: Path) -> None:
    first = draw_dataset(tmp_path / "a", num_images=2, image_size=SIZE, seed=5)
    longer = draw_dataset(tmp_path / "b", num_images=3, image_size=SIZE, seed=5)
    other = draw_dataset(tmp_path / "c", num_images=2, image_size=SIZE, seed=6)
    name = "000002.jpg"
    assert (first.image_folder / name).read_bytes() == (longer.image_folder / name).read_bytes()
    assert (first.image_folder / name).read_bytes() != (other.image_folder / name).read_bytes()
    annotations = [json.loads(drawn.annotation_file.read_text())["annotations"] for drawn in (first, longer)]
    assert annotations[0] == annotations[1][: len(annotations[0])]


def test_a_drawing_is_kept_when_it_is_there_and_replaced_when_it_is_another(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    annotation_file = draw_dataset(folder, num_images=2, image_size=SIZE).annotation_file
    before = annotation_file.stat().st_mtime_ns
    draw_dataset(folder, num_images=2, image_size=SIZE)
    assert annotation_file.stat().st_mtime_ns == before
    draw_dataset(folder, num_images=1, image_size=SIZE)
    assert len(list((folder / "images").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imwrite", lambda *_: False)
    with pytest.raises(OSError, match="could not write"):
        draw_dataset(tmp_path / "set", num_images=1, image_size=SIZE)
    assert not list(tmp_path.iterdir())


def test_other_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files but no"):
        draw_dataset(tmp_path, num_images=1, image_size=SIZE)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "num_images is 0"),
        ({"num_images": 1, "image_size": (16, 64)}, "at least 32 pixels"),
        ({"num_images": 1, "seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_drawn(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_dataset(tmp_path / "set", **arguments)
