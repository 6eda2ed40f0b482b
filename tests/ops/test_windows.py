"""Windows along outlines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from phoenix_d2.ops.windows import box_window, outline, tile, tiles_along, zoom_window

AREAS = [((0, 0, 130, 97), 32), ((3, 5, 40, 50), 32), ((0, 0, 10, 7), 32), ((0, 0, 33, 32), 32), ((2, 2, 5, 9), 2)]


@pytest.mark.parametrize(("area", "side"), AREAS)
def test_tiles_stay_in_their_area_and_weigh_one_together(area: tuple[int, int, int, int], side: int) -> None:
    x0, y0, x1, y1 = area
    weights = torch.zeros(y1 + 3, x1 + 3)
    for part in tile(area, side):
        left, top, right, bottom = part.window
        assert x0 <= left < right <= x1 and y0 <= top < bottom <= y1
        assert (right - left, bottom - top) == (min(side, x1 - x0), min(side, y1 - y0))
        assert part.weights.min() >= 0
        weights[part.slices] += part.weights
    torch.testing.assert_close(weights[y0:y1, x0:x1], torch.ones(y1 - y0, x1 - x0))
    assert weights.sum() == pytest.approx((y1 - y0) * (x1 - x0), rel=1e-5)


def test_weights_fade_towards_the_next_tile() -> None:
    first, second = tile((0, 0, 6, 4), 4)
    assert first.window == (0, 0, 4, 4) and second.window == (2, 0, 6, 4)
    # the centres lie at 1.5 and 3.5
    assert first.column_weights.tolist() == [1, 1, 0.75, 0.25]
    assert second.column_weights.tolist() == [0.25, 0.75, 1, 1]
    assert first.row_weights.tolist() == [1, 1, 1, 1]


def test_an_outline_has_both_sides_and_no_image_border() -> None:
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[0, :2, :2] = True
    assert outline(mask)[0].int().tolist() == [
        [0, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert not outline(torch.ones(2, 4, 6, dtype=torch.bool)).any()


def test_every_outline_pixel_is_covered_to_the_full() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 1, 12, 16, generator=generator)
    mask = torch.nn.functional.interpolate(noise, (150, 200), mode="bicubic")[0] > 0.8
    edge = outline(mask)[0]
    tiles = tiles_along(edge, (0, 0, 200, 150), 32)
    weights = torch.zeros(150, 200)
    for part in tiles:
        weights[part.slices] += part.weights
    assert len(tiles) < len(tile((0, 0, 200, 150), 32))
    torch.testing.assert_close(weights[edge], torch.ones(int(edge.sum())))


def test_blending_leaves_no_seam() -> None:
    base = torch.zeros(64, 96)
    tiles = tile((0, 0, 96, 64), 32)
    agreed, some = base.clone(), base.clone()
    for i, part in enumerate(tiles):
        part.blend(agreed, base, torch.full((32, 32), 0.75))
        if i % 2:
            part.blend(some, base, torch.ones(32, 32))
    torch.testing.assert_close(agreed, torch.full((64, 96), 0.75))
    # 16 pixels lie between centres: no step is larger than that of both axes together
    assert max(some.diff(dim=0).abs().max(), some.diff(dim=1).abs().max()) <= 1 / 16 + 1e-6


@pytest.mark.parametrize(
    ("box", "window"),
    [((40, 40, 60, 50), (30, 25, 70, 65)), ((0, 0, 10, 10), (0, 0, 20, 20)), ((0, 0, 90, 10), (0, 0, 100, 80))],
)
def test_a_zoom_window_fits_into_the_image(box: tuple[int, ...], window: tuple[int, ...]) -> None:
    assert zoom_window((80, 100), box, 2.0) == window


def test_a_box_grows_by_pixels_or_by_a_share_of_its_side() -> None:
    mask = np.zeros((30, 40), bool)
    mask[2:6, 20:40] = True
    assert mask[box_window(mask)].shape == (4, 20)
    assert box_window(mask, margin=3)[0] == slice(0, 9) and mask[box_window(mask, margin=3)].shape == (9, 23)
    # a tenth of 4 rows is less than a pixel
    assert mask[box_window(mask, margin=1, share=0.1)].shape == (6, 22)
