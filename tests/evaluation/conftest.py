"""Squares on 100 x 100 images, whose overlaps can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from phoenix_d2.data.mask_json import encode_mask

SIZE = 100


def square(x0, y0=10, side=40):
    """(100, 100) bool mask of a square."""
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[y0 : y0 + side, x0 : x0 + side] = True
    return mask


def dataset(annotations, *, num_images=2, num_categories=2):
    """An annotation file from (image id, category id, mask) triples, valid for COCO and LVIS."""
    return {
        "images": [
            {
                "id": i,
                "file_name": f"{i}.jpg",
                "height": SIZE,
                "width": SIZE,
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
            for i in range(1, num_images + 1)
        ],
        "categories": [
            {"id": c, "name": f"c{c}", "frequency": "rcf"[(c - 1) % 3]} for c in range(1, num_categories + 1)
        ],
        "annotations": [
            {
                "id": index,
                "image_id": image_id,
                "category_id": category_id,
                "segmentation": encode_mask(mask),
                "area": int(mask.sum()),
                "bbox": box(mask),
                "iscrowd": 0,
            }
            for index, (image_id, category_id, mask) in enumerate(annotations, start=1)
        ],
    }


def box(mask):
    """[x, y, width, height] of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]


def prediction(image_id, category_id, mask, score=0.5, **fields):
    """One record of a results file."""
    rle = encode_mask(mask)
    return {"image_id": image_id, "category_id": category_id, "segmentation": rle, "score": score, **fields}


@pytest.fixture(name="square")
def square_fixture():
    return square


@pytest.fixture(name="dataset")
def dataset_fixture():
    return dataset


@pytest.fixture(name="prediction")
def prediction_fixture():
    return prediction
