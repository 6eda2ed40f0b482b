"""Pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phoenix_d2.visualization import draw_masks, side_by_side, training_panel

GREY = np.full((40, 60, 3), 100, dtype=np.uint8)


def square(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((1, 40, 60), dtype=bool)
    mask[0, y0:y1, x0:x1] = True
    return mask


def test_masks_are_filled_and_traced_on_a_copy() -> None:
    drawn = draw_masks(GREY, square(10, 10, 30, 30), alpha=0.5)
    assert (GREY == 100).all()
    assert drawn.shape == GREY.shape and drawn.dtype == np.uint8
    assert drawn[20, 20].tolist() == [177, 82, 82], "half grey, half the first colour"
    assert drawn[10, 20].tolist() == pytest.approx([255, 64, 64], abs=20), "the outline is all but opaque"
    assert (drawn[35:] == 100).all() and (drawn[:, 35:] == 100).all()


def test_each_mask_has_a_colour_unless_one_is_asked_for() -> None:
    masks = np.concatenate([square(5, 5, 20, 20), square(30, 5, 45, 20)])
    drawn = draw_masks(GREY, masks)
    assert drawn[12, 12].tolist() != drawn[12, 38].tolist()
    alike = draw_masks(GREY, masks, color=1)
    assert alike[12, 12].tolist() == alike[12, 38].tolist() == drawn[12, 38].tolist()


def test_holes_are_traced_and_not_filled() -> None:
    mask = square(5, 5, 35, 35) & ~square(12, 12, 28, 28)
    drawn = draw_masks(GREY, mask)
    assert drawn[20, 20].tolist() == [100, 100, 100]
    assert drawn[11, 20].tolist() == pytest.approx([255, 64, 64], abs=20)


def test_no_masks_and_empty_masks_leave_the_picture() -> None:
    assert np.array_equal(draw_masks(GREY, np.zeros((0, 40, 60), dtype=bool)), GREY)
    assert np.array_equal(draw_masks(GREY, np.zeros((2, 40, 60), dtype=bool)), GREY)


def test_pictures_stand_side_by_side_under_their_titles() -> None:
    row = side_by_side([GREY, GREY + 50], ["before", "after"])
    assert row.shape == (22 + 40, 60 + 4 + 60, 3)
    assert (row[22:, :60] == 100).all() and (row[22:, 64:] == 150).all() and (row[:, 60:64] == 255).all()
    assert (row[:22, :60] < 128).any(), "the title is written"


def test_pictures_are_scaled_to_a_height() -> None:
    assert side_by_side([GREY], ["small"], height=20).shape == (22 + 20, 30, 3)
    two = side_by_side([GREY, GREY[:20]], ["all", "half"], height=40)
    assert two.shape == (22 + 40, 60 + 4 + 120, 3)


def test_every_picture_needs_a_title() -> None:
    with pytest.raises(ValueError, match="zip"):
        side_by_side([GREY, GREY], ["one"])


def test_a_training_panel_lays_low_resolution_masks_over_the_image() -> None:
    low_res = torch.zeros(16, 16)
    low_res[:5, :8] = 1
    image = torch.full((3, 40, 64), 100, dtype=torch.uint8)
    panel = training_panel({"image": image, "target": low_res, "noisy": low_res > 0.5})
    assert panel.shape == (22 + 40, 3 * 64 + 2 * 4, 3)
    plain, target, noisy = panel[22:, :64], panel[22:, 68:132], panel[22:, 136:]
    assert (plain == 100).all()
    changed = (target != 100).any(2)
    # 4 pixels a low-resolution pixel
    assert changed[:20, :32].all()
    # but for the rim of the outline, nothing beside the mask
    assert not changed[24:].any() and not changed[:, 36:].any()
    assert np.array_equal(target, noisy)
