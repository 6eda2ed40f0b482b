"""Image files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from phoenix_d2.files import listed

# EXIF orientations that lay the image on its side
_SIDEWAYS = range(5, 9)


def find_images(folder: str | Path) -> list[Path]:
    """The image files in a folder and the folders below it, by name; none if there is no such folder."""
    # the endings of the formats that Pillow can open
    readable = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in readable and path.is_file())


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file of any kind as RGB.

    Grey images are repeated over the channels, an alpha channel is dropped, values of 16 bits are scaled to 8, unless
    none needs more than 8, and the orientation that a camera noted is applied, as Detectron2 does.

    Returns:
        (H, W, 3) uint8, writable.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, cut short, or of floating-point values.
    """
    with open_image(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "F":
            raise ValueError(f"{path} holds floating-point values, whose white is unknown: export 8 or 16 bits.")
        if upright.mode.startswith("I"):
            return _from_16_bits(np.asarray(upright))
        return np.array(upright.convert("RGB"))


def read_image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of what `read_image` would return, from the file's header alone; errors as there.

    A file that is cut short behind its header goes unnoticed.
    """
    with open_image(path) as image:
        width, height = image.size
        # for PNG, Pillow overrides it to decode the whole image first, in search of a note at its end
        exif = Image.Image.getexif(image)
        # of a TIFF, Pillow tells the upright size itself
        sideways = exif.get(ExifTags.Base.Orientation) in _SIDEWAYS and image.format != "TIFF"
        return (width, height) if sideways else (height, width)


def check_images(images: Iterable[tuple[Any, Path, tuple[int, int]]], folder: str | Path) -> None:
    """Check that images are there and of the size that a file of masks states, from their headers alone.

    Args:
        images: id, path and (height, width) in pixels of each.
        folder: that the file names are relative to, for messages.

    Raises:
        ValueError: some are not; the message names the first few.
    """
    problems = [problem for image in images if (problem := image_problem(*image))]
    if problems:
        raise ValueError(
            f"{len(problems)} image(s) cannot be used:{listed(problems)}\n"
            f"Check that {folder} is the folder that the file names are relative to, with the images that the masks "
            "were made on."
        )


def image_problem(image_id: Any, path: Path, stated: tuple[int, int]) -> str | None:
    """Why an image cannot be what a file of masks states, by its header alone; None where it can.

    Args:
        image_id: for the message.
        path: of the image.
        stated: (height, width) in pixels.
    """
    where = f"{path} (image id {image_id})"
    try:
        size = read_image_size(path)
    except FileNotFoundError:
        return f"{where} is missing"
    except ValueError as error:
        return f"image id {image_id}: {error}"
    if size != stated:
        text = f"{where} is {size[0]} x {size[1]} (height x width), in the JSON {stated[0]} x {stated[1]}"
        return text + (", perhaps without its EXIF orientation" if size[::-1] == stated else "")
    return None


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file with Pillow, for the block; errors as `read_image`, for what is read in the block too."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error} Cut it into tiles, or raise PIL.Image.MAX_IMAGE_PIXELS.") from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): fetch or export it again.") from error


def _from_16_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    # Pillow's own conversion would cut everything above 255 off
    grey = np.clip(pixels, 0, 65535)
    grey = (grey // 257 if grey.max(initial=0) > 255 else grey).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
