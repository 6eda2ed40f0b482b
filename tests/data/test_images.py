"""Image files of any kind as RGB."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phoenix_d2.data.images import check_images, read_image, read_image_size

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
ORIENTATION = 0x0112


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_rgb_comes_back_writable(tmp_path: Path) -> None:
    image = read_image(save(Image.fromarray(RGB), tmp_path / "image.png"))
    assert image.dtype == np.uint8 and image.flags.writeable
    np.testing.assert_array_equal(image, RGB)


def test_alpha_is_dropped(tmp_path: Path) -> None:
    rgba = np.dstack([RGB, np.full((6, 8), 7, dtype=np.uint8)])
    np.testing.assert_array_equal(read_image(save(Image.fromarray(rgba), tmp_path / "image.png")), RGB)


def test_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    assert read_image(save(image, tmp_path / "image.png")).tolist() == expected


def test_grey_is_repeated(tmp_path: Path) -> None:
    image = read_image(save(Image.fromarray(RGB[..., 0]), tmp_path / "image.png"))
    np.testing.assert_array_equal(image, np.repeat(RGB[..., :1], 3, axis=2))


def test_16_bits_are_scaled(tmp_path: Path) -> None:
    grey = np.array([[0, 257, 65535], [256, 512, 32896]], dtype=np.uint16)
    image = read_image(save(Image.fromarray(grey), tmp_path / "image.png"))
    assert image.dtype == np.uint8 and image.flags.writeable
    assert image[..., 0].tolist() == [[0, 1, 255], [0, 1, 128]]
    assert (image == image[..., :1]).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_values_that_fit_into_8_bits_stay(tmp_path: Path, dtype: type) -> None:
    grey = np.array([[0, 1, 255]], dtype=dtype)
    image = read_image(save(Image.fromarray(grey), tmp_path / "image.tiff"))
    assert image[..., 0].tolist() == [[0, 1, 255]]


def test_floating_point_values_are_refused(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)), tmp_path / "image.tiff")
    with pytest.raises(ValueError, match=r"image\.tiff holds floating-point values.*export 8 or 16 bits"):
        read_image(path)


def test_an_image_that_is_too_large_for_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Image.fromarray(RGB), tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(ValueError, match=r"image\.png: .*tiles, or raise PIL\.Image\.MAX_IMAGE_PIXELS"):
        read_image(path)


def test_a_size_that_lies_on_its_side_hints_at_the_orientation(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.zeros((4, 6, 3), np.uint8)), tmp_path / "image.png")
    with pytest.raises(ValueError, match=r"is 4 x 6 .* in the JSON 6 x 4, perhaps without its EXIF orientation"):
        check_images([(1, path, (6, 4))], tmp_path)
    with pytest.raises(ValueError, match=r"in the JSON 6 x 5\n"):
        check_images([(1, path, (6, 5))], tmp_path)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, RGB), (2, RGB[:, ::-1]), (3, RGB[::-1, ::-1]), (6, np.rot90(RGB, -1)), (8, np.rot90(RGB))],
)
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_the_cameras_orientation_is_applied(tmp_path: Path, orientation: int, upright: np.ndarray, suffix: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(Image.fromarray(RGB), tmp_path / f"image.{suffix}", exif=exif)
    np.testing.assert_array_equal(read_image(path), upright)


@pytest.mark.parametrize(
    ("orientation", "size"), [(1, (6, 8)), (3, (6, 8)), (5, (8, 6)), (6, (8, 6)), (8, (8, 6)), (9, (6, 8))]
)
@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_the_size_is_that_of_the_upright_image(
    tmp_path: Path, orientation: int, size: tuple[int, int], suffix: str
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(Image.fromarray(RGB), tmp_path / f"image.{suffix}", exif=exif)
    assert read_image_size(path) == read_image(path).shape[:2] == size


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_size_needs_the_header_alone(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"image.{suffix}")
    path.write_bytes(path.read_bytes()[:2000])
    assert read_image_size(path) == (100, 120)
    with pytest.raises(ValueError, match="cannot be read"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, read_image_size])
@pytest.mark.parametrize("content", [b"no image", b""])
def test_what_is_no_image_is_refused(tmp_path: Path, read: Callable[[Path], Any], content: bytes) -> None:
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"image\.png cannot be read"):
        read(tmp_path / "image.png")


@pytest.mark.parametrize("read", [read_image, read_image_size])
def test_an_image_too_large_to_be_meant_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any]
) -> None:
    path = save(Image.fromarray(RGB), tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="decompression bomb"):
        read(path)


@pytest.mark.parametrize("read", [read_image, read_image_size])
def test_a_missing_file_stays_a_missing_file(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere.png")
