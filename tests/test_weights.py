"""The weights that come with the package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phoenix_d2 import PhoenixRefiner
from phoenix_d2.ops.masks import mask_iou
from phoenix_d2.sam.checkpoint import read_metadata
from phoenix_d2.sam.pretrained import WEIGHTS_DIR, find_weights

NAMES = sorted(path.stem for path in WEIGHTS_DIR.glob("*.safetensors"))


@pytest.mark.parametrize("name", NAMES)
def test_packaged_weights_say_what_they_are_and_stay_small(name: str) -> None:
    path = find_weights(name)
    assert path.stat().st_size <= 12_000_000
    assert path.with_suffix(".md").is_file(), "weights need a card"
    assert set(read_metadata(path)) == {"encoder", "encoder_sha256", "input_size", "prompter", "options", "gate"}


def test_phoenix_tiny_finds_a_disk_in_its_box() -> None:
    rows, columns = np.indices((240, 320))
    disk = torch.from_numpy(np.hypot(rows - 120, columns - 160) < 60)
    noise = np.random.default_rng(0).normal(0, 8, (240, 320, 3))
    picture = np.where(disk[..., None], (200, 60, 40), (60, 110, 70)) + noise
    box = torch.zeros(240, 320, dtype=torch.bool)
    box[60:180, 100:220] = True

    result = PhoenixRefiner.from_pretrained("phoenix_tiny").refine(picture.clip(0, 255).astype(np.uint8), box[None])
    before, after = (mask_iou(mask[None], disk[None]).item() for mask in (box, result.masks[0]))
    assert before == pytest.approx(np.pi / 4, abs=0.01)
    assert after > before + 0.05
