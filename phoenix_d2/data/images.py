"""Image files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file of any kind as RGB.

    Grey images are repeated over the channels, an alpha channel is dropped, 16 bits are scaled to 8, and the
    orientation that a camera noted is applied, as Detectron2 does.

    Returns:
        (H, W, 3) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, or cut short.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                return _from_16_bits(np.asarray(upright))
            return np.asarray(upright.convert("RGB"))
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): fetch or export it again.") from error


def _from_16_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    # Pillow's own conversion would cut everything above 255 off
    grey = (np.clip(pixels, 0, 65535) // 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
