"""Folders of PNG masks: pairing, reading, and training and evaluating on data sets that come so."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from phoenix_d2.data.datasets import register_folders, register_masks
from phoenix_d2.data.datasets.binary import PUBLISHED
from phoenix_d2.data.datasets.drawn import draw_dataset
from phoenix_d2.data.mask_folders import load_mask_dataset, pair_masks, read_mask, write_mask
from phoenix_d2.data.mask_json import decode_segmentation
from phoenix_d2.engine import Trainer

NUM_PICTURES = 4


def lay_out(source, images, masks, suffix=""):
    """Lay drawn pictures and the mask of each one's first object out as a publisher does; the masks by name."""
    images.mkdir(parents=True)
    content = json.loads((source / "instances.json").read_text())
    targets = {}
    for image in content["images"]:
        name = image["file_name"].removesuffix(".jpg")
        first = next(a for a in content["annotations"] if a["image_id"] == image["id"])
        targets[name] = decode_segmentation(first["segmentation"], image["height"], image["width"])
        (images / f"{name}.jpg").write_bytes((source / "images" / image["file_name"]).read_bytes())
        write_mask(masks / f"{name}{suffix}.png", targets[name])
    (images / "LICENSE.txt").write_text("no image")
    return targets


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "set"
    draw_dataset(folder, num_images=NUM_PICTURES, image_size=(96, 128))
    return folder


@pytest.mark.parametrize("name", ["dis5k_train", "dis5k_te1", "thinobject5k_train", "isic2018_val"])
def test_published_layouts(name, drawn, tmp_path):
    folders = PUBLISHED[name]
    targets = lay_out(drawn, tmp_path / folders.images, tmp_path / folders.masks, folders.suffix)
    if folders.list_file:
        (tmp_path / folders.list_file).parent.mkdir()
        (tmp_path / folders.list_file).write_text("".join(f"{target}.jpg\n" for target in list(targets)[:2]))
        targets = dict(list(targets.items())[:2])
    samples = folders.load(tmp_path)
    assert [sample["image_id"] for sample in samples] == sorted(targets)
    for sample in samples:
        (annotation,) = sample["annotations"]
        mask = decode_segmentation(annotation["segmentation"], sample["height"], sample["width"])
        assert (mask == targets[sample["image_id"]]).all() and annotation["area"] == mask.sum()
    assert name in DatasetCatalog and MetadataCatalog.get(name).evaluator_type == "binary_masks"


def test_training_and_evaluation_on_a_published_layout(cfg, drawn, tmp_path):
    for name in ("dis5k_train", "dis5k_vd"):
        lay_out(drawn, tmp_path / PUBLISHED[name].images, tmp_path / PUBLISHED[name].masks)
        register_masks(f"{name}_drawn", PUBLISHED[name], tmp_path)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("dis5k_train_drawn",), ("dis5k_vd_drawn",)
    cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD = 2, 0
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.train()
    assert np.isfinite(trainer.storage.latest()["total_loss"][0])
    results = Trainer.test(cfg, trainer.model)
    figures = results["masks"], results["coarse_masks"]
    assert all(0 <= part[name] <= 100 for part in figures for name in ("IoU", "IoU pooled", "boundary F", "Dice"))
    assert results["coarse_masks"]["IoU"] > 50


def test_a_folder_of_images_and_masks_is_a_dataset(drawn, tmp_path):
    lay_out(drawn, tmp_path / "images", tmp_path / "masks")
    register_folders([str(tmp_path)])
    samples = DatasetCatalog.get(str(tmp_path))
    assert len(samples) == NUM_PICTURES and all(sample["annotations"] for sample in samples)


def test_names_in_a_list_may_have_blanks(drawn, tmp_path):
    targets = lay_out(drawn, tmp_path / "images", tmp_path / "masks")
    for path in (tmp_path / "images" / f"{min(targets)}.jpg", tmp_path / "masks" / f"{min(targets)}.png"):
        path.rename(path.with_stem("old chair"))
    (tmp_path / "list.txt").write_text("\nold chair.jpg \n\n")
    (sample,) = load_mask_dataset(tmp_path / "images", tmp_path / "masks", list_file=tmp_path / "list.txt")
    assert sample["image_id"] == "old chair"


def test_an_empty_mask_has_no_annotation(drawn, tmp_path):
    targets = lay_out(drawn, tmp_path / "images", tmp_path / "masks")
    write_mask(tmp_path / "masks" / f"{min(targets)}.png", np.zeros((96, 128), bool))
    samples = load_mask_dataset(tmp_path / "images", tmp_path / "masks")
    assert [len(sample["annotations"]) for sample in samples] == [0, 1, 1, 1]


def test_masks_of_every_kind_are_read(tmp_path):
    values = np.array([[0, 127], [128, 255]], np.uint8)
    expected = [[False, False], [True, True]]
    kinds = {
        "grey": Image.fromarray(values),
        "one_bit": Image.fromarray(values >= 128),
        "rgb": Image.fromarray(np.repeat(values[..., None], 3, 2)),
        "deep": Image.fromarray(values.astype(np.uint16) * 257),
        "deep_but_low": Image.fromarray(values.astype(np.uint16)),
    }
    for name, image in kinds.items():
        image.save(tmp_path / f"{name}.png")
        assert read_mask(tmp_path / f"{name}.png").tolist() == expected, name
    write_mask(tmp_path / "again.png", read_mask(tmp_path / "grey.png"))
    assert np.array(Image.open(tmp_path / "again.png")).tolist() == [[0, 0], [255, 255]]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.eye(4, dtype=np.uint8), "no value but 0 and 1, a mask has 0 and 255: scale it"),
        (np.eye(4, dtype=np.uint16), "no value but 0 and 1, a mask has 0 and 255: scale it"),
        (np.full((4, 4), 38, dtype=np.uint8), "no value but 38, a mask has 0 and 255"),
        (np.dstack([np.full((4, 4, 3), 255), 255 * np.eye(4)]).astype(np.uint8), "its shape in the alpha channel"),
        (np.arange(48, dtype=np.uint8).reshape(4, 4, 3), "coloured, a mask is grey"),
        (np.zeros((4, 5), np.uint8), r"4 x 5 \(height x width\), its image is 4 x 4: resize"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path, pixels, message):
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=message):
        read_mask(tmp_path / "mask.png", (4, 4))


def test_files_that_do_not_pair_up_are_named(drawn, tmp_path):
    lay_out(drawn, tmp_path / "images", tmp_path / "masks", "_mask")
    with pytest.raises(ValueError, match=r"8 file\(s\) do not pair up:\n.*: no .*\n[^$]*and 3 more\n.*suffix"):
        pair_masks(tmp_path / "images", tmp_path / "masks")
    assert len(pair_masks(tmp_path / "images", tmp_path / "masks", suffix="_mask")) == NUM_PICTURES
    with pytest.raises(ValueError, match=r"holds no images, or no \*\.png"):
        pair_masks(tmp_path / "absent", tmp_path / "masks")
    (tmp_path / "images" / "000001.png").write_bytes((tmp_path / "masks" / "000001_mask.png").read_bytes())
    with pytest.raises(ValueError, match="have the same name: keep one"):
        pair_masks(tmp_path / "images", tmp_path / "masks", suffix="_mask")


def test_names_in_a_list_may_have_dots(drawn, tmp_path):
    lay_out(drawn, tmp_path / "images", tmp_path / "masks")
    for folder in ("images", "masks"):
        for path in (tmp_path / folder).iterdir():
            path.rename(path.with_name(f"a.v1.{path.name}"))
    (tmp_path / "list.txt").write_text("a.v1.000001\na.v1.000002.png\n")
    samples = load_mask_dataset(tmp_path / "images", tmp_path / "masks", list_file=tmp_path / "list.txt")
    assert [sample["image_id"] for sample in samples] == ["a.v1.000001", "a.v1.000002"]
