"""Pictures composed of others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from phoenix_d2.data.datasets.composed import compose_dataset
from phoenix_d2.data.datasets.drawn import DrawingStyle, draw_dataset
from phoenix_d2.data.images import read_image
from phoenix_d2.data.mask_json import decode_segmentation, load_annotations


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("composed") / "source"
    draw_dataset(folder, num_images=4, image_size=(120, 160), seed=3, style=DrawingStyle(objects=(1, 2)))
    return folder


@pytest.fixture(scope="module")
def composed(source: Path) -> Path:
    folder = source.parent / "composed"
    compose_dataset(folder, [source], num_images=6, seed=1)
    return folder


def test_what_is_written_is_a_dataset(composed: Path) -> None:
    data = load_annotations(composed / "instances.json")
    assert len(data["images"]) == 6
    per_image = np.bincount([a["image_id"] for a in data["annotations"]], minlength=7)[1:]
    assert per_image.mean() > 3
    for image in data["images"]:
        assert read_image(composed / "images" / image["file_name"]).shape == (120, 160, 3)
    for annotation in data["annotations"]:
        mask = decode_segmentation(annotation["segmentation"], 120, 160)
        x, y, width, height = map(int, annotation["bbox"])
        assert mask.sum() == mask[y : y + height, x : x + width].sum() == annotation["area"] >= 256


def test_something_lies_where_a_pasted_mask_says(source: Path, composed: Path) -> None:
    """Pixels changed against the photograph are those of pasted masks, but for soft outlines and JPEG's traces."""
    photographs = [read_image(path).astype(int) for path in sorted((source / "images").iterdir())]
    data = load_annotations(composed / "instances.json")
    num_changed = 0
    for image in data["images"]:
        picture = read_image(composed / "images" / image["file_name"]).astype(int)
        distances = [np.abs(picture - photograph).max(-1) for photograph in photographs]
        changed = min(distances, key=np.median) > 60
        masks = [a["segmentation"] for a in data["annotations"] if a["image_id"] == image["id"]]
        covered = np.any([decode_segmentation(mask, 120, 160) for mask in masks], axis=0)
        assert changed[~covered].mean() < 0.05
        # in a crowded photograph nothing may find room
        num_changed += changed.any()
    assert num_changed >= 4


def test_a_seed_repeats_itself(source: Path, composed: Path, tmp_path: Path) -> None:
    compose_dataset(tmp_path / "again", [source], num_images=2, seed=1)
    compose_dataset(tmp_path / "other", [source], num_images=2, seed=2)
    first, again, other = (
        (folder / "images" / "000001.jpg").read_bytes() for folder in (composed, tmp_path / "again", tmp_path / "other")
    )
    assert first == again != other


def test_a_folder_that_exists_is_left_alone(source: Path, composed: Path) -> None:
    before = (composed / "instances.json").read_bytes()
    with pytest.raises(FileExistsError, match="name a new folder"):
        compose_dataset(composed, [source], num_images=1)
    assert (composed / "instances.json").read_bytes() == before


def test_nothing_to_paste(source: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    (bare / "images").mkdir(parents=True)
    data = json.loads((source / "instances.json").read_text()) | {"annotations": []}
    (bare / "instances.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="is of a single object"):
        compose_dataset(tmp_path / "composed", [bare], num_images=1)
    assert not (tmp_path / "composed").exists()
