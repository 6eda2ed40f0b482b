"""Pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phoenix_d2.visualization import compare_masks, draw_change, draw_masks, side_by_side, training_panel

GREY = np.full((40, 60, 3), 100, dtype=np.uint8)


def square(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((1, 40, 60), dtype=bool)
    mask[0, y0:y1, x0:x1] = True
    return mask


def test_masks_are_filled_and_traced_on_a_copy() -> None:
    drawn = draw_masks(GREY, square(10, 10, 30, 30))
    assert (GREY == 100).all()
    assert drawn.shape == GREY.shape and drawn.dtype == np.uint8
    assert drawn[20, 20].tolist() == [162, 85, 85], "three parts of grey, two of the first colour"
    assert drawn[10, 20].tolist() == pytest.approx([255, 64, 64], abs=20), "the outline is opaque"
    assert (drawn[35:] == 100).all() and (drawn[:, 35:] == 100).all()


def test_each_mask_has_a_colour() -> None:
    drawn = draw_masks(GREY, np.concatenate([square(5, 5, 20, 20), square(30, 5, 45, 20)]))
    assert drawn[12, 12].tolist() != drawn[12, 38].tolist()


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


def test_every_picture_needs_a_title() -> None:
    with pytest.raises(ValueError, match="zip"):
        side_by_side([GREY, GREY], ["one"])


def test_an_object_is_shown_in_a_square_of_its_image() -> None:
    picture = compare_masks(GREY, {"before": square(50, 10, 58, 14)[0], "after": square(52, 12, 60, 14)[0]}, side=90)
    # 15 pixels, 6 times enlarged, moved into the image
    assert picture.shape == (22 + 90, 3 * 90 + 2 * 4, 3)
    before, after = ((picture[22:, start : start + 90] != 100).any(2) for start in (94, 188))
    assert before[40, 50] and not after[40, 50] and before[20:70].sum() == before.sum()
    assert after[50, 89] and not before[50, 89]
    # a wide object fills what its image has
    assert compare_masks(GREY, {"wide": square(0, 10, 60, 14)[0]}, side=60).shape == (22 + 40, 2 * 60 + 4, 3)


def test_masks_without_a_pixel_are_shown_as_the_whole_image() -> None:
    picture = compare_masks(GREY, {"empty": square(0, 0, 0, 0)[0]}, side=60)
    assert picture.shape == (22 + 40, 2 * 60 + 4, 3) and (picture[22:, 64:] == 100).all()


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


def test_what_was_gained_and_lost_has_colours_of_its_own():
    drawn = draw_change(GREY, square(10, 10, 20, 20)[0], square(15, 10, 25, 20)[0])
    changed = (drawn != GREY).any(axis=-1)
    assert changed[10:20, 10:15].all() and changed[10:20, 20:25].all() and changed.sum() == 100
    lost, gained = drawn[15, 12].astype(int), drawn[15, 22].astype(int)
    assert lost[0] > lost[1] and gained[1] > gained[0]
