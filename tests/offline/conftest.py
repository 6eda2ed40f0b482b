"""A mask file, its images, and a refiner whose answer is known."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from phoenix_d2.data.mask_json import encode_mask
from phoenix_d2.structures import RefinementResult, RefinementStatus

SIZE = (40, 60)


def box_mask(x0, y0, x1, y1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


class ShiftingRefiner:
    """Moves masks right by two pixels; those of one row are taken for too small."""

    def __init__(self):
        self.seen = []

    def refine(self, image, masks):
        assert image.shape[:2] == masks.shape[1:] and image.dtype == np.uint8
        self.seen.append(len(masks))
        status = np.full(len(masks), int(RefinementStatus.REFINED))
        status[masks.any(axis=2).sum(axis=1) == 1] = RefinementStatus.KEPT_SMALL
        status[~masks.any(axis=(1, 2))] = RefinementStatus.KEPT_EMPTY
        zeros = torch.zeros(len(masks))
        return RefinementResult(
            masks=np.roll(masks, 2, axis=2),
            iou_predictions=zeros,
            coarse_iou_predictions=zeros,
            low_res_logits=zeros[:, None, None],
            status=status,
            iou_trace=zeros[:, None],
            change_trace=zeros[:, None],
            evidence=zeros[:, None],
            predicted_gain=zeros,
        )


@pytest.fixture
def refiner():
    return ShiftingRefiner()


@pytest.fixture
def dataset(tmp_path):
    """Three images; the masks of images 1 and 2 in turn, as RLE, plain RLE and polygon, a crowd, an empty mask."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(folder / f"{name}.png")
    plain = {"size": list(SIZE), "counts": [0, SIZE[0] * SIZE[1]]}
    records = [
        (1, encode_mask(box_mask(10, 10, 20, 30))),
        (2, plain),
        (1, [[5, 5, 25, 5, 25, 15, 5, 15]]),
        (2, encode_mask(box_mask(0, 0, 0, 0))),
        (1, encode_mask(box_mask(3, 3, 9, 4))),
        (2, encode_mask(box_mask(0, 0, 50, 40))),
    ]
    annotations = [
        {"bbox": [0, 0, 1, 1], "id": 10 + i, "image_id": image_id, "category_id": 3, "segmentation": s, "note": i}
        for i, (image_id, s) in enumerate(records)
    ]
    annotations[5]["iscrowd"] = 1
    annotations[0]["area"] = 1.5
    data = {
        "info": {"by": "hand"},
        "images": [
            {"id": i, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]}
            for i, name in enumerate("abc", start=1)
        ],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "thing"}],
    }
    path = tmp_path / "instances.json"

    def write(changed):
        path.write_text(json.dumps(changed))
        return path

    write(data)
    return SimpleNamespace(folder=folder, path=path, data=data, write=write)
