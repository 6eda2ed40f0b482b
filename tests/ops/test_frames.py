"""Frames and the maps between them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segment_anything.utils.transforms import ResizeLongestSide

from phoenix_d2.ops.frames import Frame
from phoenix_d2.ops.masks import mask_iou

SIZES = [(480, 640), (640, 480), (333, 517), (1024, 1024), (100, 75), (1365, 2048), (31, 900), (256, 256)]


def whole(image_size: tuple[int, int]) -> Frame:
    return Frame.whole(image_size, input_size=1024, low_res_size=256)


def ellipse(size: tuple[int, int], box: tuple[float, float, float, float]) -> torch.Tensor:
    """(1, H, W) mask of the ellipse that fills a box."""
    x0, y0, x1, y1 = box
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    radius = ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2
    return (radius <= 1)[None]


def there_and_back(frame: Frame, masks: torch.Tensor) -> torch.Tensor:
    x0, y0, x1, y1 = frame.window
    back = torch.zeros_like(masks)
    back[:, y0:y1, x0:x1] = frame.logits_to_window(frame.masks_to_low_res(masks) - 0.5) > 0
    return back


@pytest.mark.parametrize("size", SIZES)
def test_a_blob_survives_the_way_there_and_back(size: tuple[int, int]) -> None:
    height, width = size
    masks = ellipse(size, (0.2 * width, 0.1 * height, 0.7 * width, 0.8 * height))
    assert mask_iou(there_and_back(whole(size), masks), masks) > 0.97


@pytest.mark.parametrize("window", [(100, 50, 180, 130), (500, 400, 640, 480), (0, 0, 33, 90)])
def test_a_zoomed_blob_survives_exactly_where_it_was(window: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = window
    frame = Frame((480, 640), window, input_size=1024, low_res_size=256)
    masks = ellipse((480, 640), (x0 + 4, y0 + 3, x1 - 8, y1 - 5))
    # more low-resolution pixels than pixels: nothing is lost
    assert there_and_back(frame, masks).equal(masks)


@pytest.mark.parametrize("size", SIZES)
def test_a_full_mask_covers_the_valid_area_and_nothing_else(size: tuple[int, int]) -> None:
    frame = whole(size)
    coverage = frame.masks_to_low_res(torch.ones(1, *size, dtype=torch.bool))[0]
    valid = frame.valid_mask()[0]
    assert (coverage[~valid] == 0).all()
    assert (coverage[valid] > 0).all()
    rows, columns = (side / 4 for side in frame.resized_size)
    torch.testing.assert_close(coverage[: int(rows), : int(columns)], torch.ones(int(rows), int(columns)))
    for edge, span in ((coverage[:, 0], rows), (coverage[0], columns)):
        if span % 1:
            assert edge[int(span)].item() == pytest.approx(span % 1, abs=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_coverage_preserves_area(size: tuple[int, int]) -> None:
    frame = whole(size)
    masks = torch.rand(2, *size, generator=torch.Generator().manual_seed(0)) > 0.6
    low_res_pixel = (size[0] / frame.resized_size[0] * 4) * (size[1] / frame.resized_size[1] * 4)
    area = frame.masks_to_low_res(masks).double().sum((1, 2)) * low_res_pixel
    torch.testing.assert_close(area, masks.sum((1, 2)).double(), rtol=1e-5, atol=0)


def test_resized_sizes_are_segment_anythings() -> None:
    generator = np.random.default_rng(0)
    for height, width in [*SIZES, *generator.integers(1, 3000, (500, 2)).tolist()]:
        expected = ResizeLongestSide.get_preprocess_shape(height, width, 1024)
        frame = whole((height, width))
        assert frame.resized_size == tuple(max(side, 1) for side in expected)
        assert frame.low_res_valid_size == tuple(int(np.ceil(side / 4)) for side in frame.resized_size)


@pytest.mark.parametrize("size", SIZES)
def test_points_keep_their_place_in_the_image(size: tuple[int, int]) -> None:
    height, width = size
    frame = whole(size)
    corners = torch.tensor([[0.0, 0.0], [width, height], [width / 2, height / 2]])
    resized_height, resized_width = frame.resized_size
    expected = [[0.0, 0.0], [resized_width, resized_height], [resized_width / 2, resized_height / 2]]
    torch.testing.assert_close(frame.coords_to_input(corners), torch.tensor(expected, dtype=torch.float32))


def test_points_are_measured_from_the_window() -> None:
    frame = Frame((480, 640), (100, 50, 200, 100), input_size=1024, low_res_size=256)
    points = frame.coords_to_input(torch.tensor([[[100.0, 50.0], [150.0, 75.0]]]))
    torch.testing.assert_close(points, torch.tensor([[[0.0, 0.0], [512.0, 256.0]]]))


def test_whole_numbers_map_as_floats_do() -> None:
    coords = torch.tensor([[3, 5], [640, 480]])
    frame = Frame((480, 640), (0, 0, 640, 480), input_size=1000, low_res_size=250)
    torch.testing.assert_close(frame.coords_to_input(coords), frame.coords_to_input(coords.float()))


def test_a_point_and_its_pixel_map_to_the_same_place() -> None:
    size, pixel = (300, 400), (211, 77)
    frame = whole(size)
    masks = torch.zeros(1, *size, dtype=torch.bool)
    masks[0, pixel[1], pixel[0]] = True
    coverage = frame.masks_to_low_res(masks)[0]
    position = torch.arange(256) + 0.5
    centre = torch.stack([(coverage.sum(0) * position).sum(), (coverage.sum(1) * position).sum()]) / coverage.sum()
    point = frame.coords_to_input(torch.tensor(pixel) + 0.5)
    assert ((point / 4).floor() == centre.floor()).all()
    torch.testing.assert_close(point / 4, centre, atol=0.5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_padding_is_never_read(size: tuple[int, int]) -> None:
    frame = whole(size)
    logits = torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(0))
    poisoned = torch.where(frame.valid_mask(), logits, 1e30)
    assert frame.logits_to_window(poisoned).equal(frame.logits_to_window(logits * frame.valid_mask()))


@pytest.mark.parametrize("size", SIZES)
def test_interpolation_reproduces_a_plane(size: tuple[int, int]) -> None:
    frame = whole(size)
    plane = (torch.arange(256)[None, :] + 0.5).expand(256, 256)[None]
    columns = frame.logits_to_window(plane)[0]
    scale = frame.resized_size[1] / 4 / size[1]
    expected = (torch.arange(size[1]) + 0.5) * scale
    # beyond the outermost centres the plane is continued flat
    inner = (expected > 0.5) & (expected < frame.low_res_valid_size[1] - 0.5)
    torch.testing.assert_close(columns[:, inner], expected[inner].expand(size[0], -1), atol=1e-3, rtol=0)


def test_maps_ignore_mixed_precision() -> None:
    frame, masks = whole((333, 517)), ellipse((333, 517), (40, 30, 300, 200))
    coverage = frame.masks_to_low_res(masks)
    logits = frame.logits_to_window(coverage - 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert frame.masks_to_low_res(masks).equal(coverage)
        assert frame.logits_to_window(coverage - 0.5).equal(logits)


@pytest.mark.parametrize("size", [(480, 640), (700, 500), (1500, 1200), (1024, 800)])
def test_images_are_resized_as_segment_anything_does(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (size[0] // 20, size[1] // 20, 3), dtype=np.uint8)
    image = np.ascontiguousarray(np.kron(coarse, np.ones((20, 20, 1), dtype=np.uint8)))
    expected = ResizeLongestSide(1024).apply_image(image).astype(int)
    resized = whole((image.shape[0], image.shape[1])).image_to_input(torch.from_numpy(image).permute(2, 0, 1))
    assert resized.dtype == torch.uint8 and resized.shape == (3, *expected.shape[:2])
    assert np.abs(resized.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


def test_images_of_floats_stay_floats_and_windows_are_cut_out() -> None:
    image = torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(0))
    frame = Frame((60, 80), (16, 8, 48, 40), input_size=32, low_res_size=8)
    assert frame.image_to_input(image).equal(image[:, 8:40, 16:48])
    assert Frame.whole((60, 80), input_size=32, low_res_size=8).image_to_input(image).dtype == torch.float32


def test_images_on_other_devices_stay_bytes() -> None:
    image = torch.zeros(3, 60, 80, dtype=torch.uint8, device="meta")
    resized = Frame.whole((60, 80), input_size=32, low_res_size=8).image_to_input(image)
    assert resized.dtype == torch.uint8 and resized.shape == (3, 24, 32)


def test_no_masks_are_no_masks_in_every_frame() -> None:
    frame = whole((48, 64))
    assert frame.masks_to_low_res(torch.zeros(0, 48, 64, dtype=torch.bool)).shape == (0, 256, 256)
    assert frame.logits_to_window(torch.zeros(0, 256, 256)).shape == (0, 48, 64)


@pytest.mark.parametrize("window", [(0, 0, 65, 48), (-1, 0, 64, 48), (10, 10, 10, 20), (0, 30, 10, 20)])
def test_windows_outside_the_image_are_refused(window: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="48 x 64"):
        Frame((48, 64), window, input_size=1024, low_res_size=256)
