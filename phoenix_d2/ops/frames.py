"""The three frames, and the maps between them.

- **image**: H x W pixels, where users' masks, points and boxes live.
- **model input**: a square that a window of the image (usually all of it) is resized into, long side
  to `input_size`, aspect kept, padded at the bottom and on the right as segment-anything does.
- **low-resolution**: the square in which the decoder reads and writes masks, a fixed fraction
  (a quarter, for SAM) of the model input.

Coordinates are continuous, (x, y), with pixel centres at half-integers. Masks come to the low-resolution frame by a
separable linear map, so that one matrix product a side replaces resize, crop and pad, and fractional borders stay
exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """A window of an image and the model input that it is resized into.

    Attributes:
        image_size: (height, width) of the image.
        window: (x0, y0, x1, y1) pixels of the image, exclusive maxima.
        input_size: side of the square model input.
        low_res_size: side of the square low-resolution frame.

    Raises:
        ValueError: the window is empty or leaves the image.
    """

    image_size: tuple[int, int]
    window: tuple[int, int, int, int]
    input_size: int
    low_res_size: int

    def __post_init__(self) -> None:
        height, width = self.image_size
        x0, y0, x1, y1 = self.window
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(f"Window {self.window} is empty or leaves its {height} x {width} image (height x width).")

    @classmethod
    def whole(cls, image_size: tuple[int, int], *, input_size: int, low_res_size: int) -> Frame:
        """The frame of a whole image of (height, width) pixels."""
        height, width = image_size
        return cls((height, width), (0, 0, width, height), input_size, low_res_size)

    @property
    def is_whole(self) -> bool:
        """Whether the window is all of the image."""
        return self.window_size == self.image_size

    @property
    def window_size(self) -> tuple[int, int]:
        """(height, width) of the window in image pixels."""
        x0, y0, x1, y1 = self.window
        return y1 - y0, x1 - x0

    @property
    def resized_size(self) -> tuple[int, int]:
        """(height, width) of the window in model-input pixels; half a pixel rounds up, as in segment-anything."""
        scale = self.input_size / max(self.window_size)
        height, width = (max(1, int(side * scale + 0.5)) for side in self.window_size)
        return height, width

    @property
    def low_res_valid_size(self) -> tuple[int, int]:
        """(height, width) of the part of the low-resolution frame that holds any image at all."""
        stride = self.input_size // self.low_res_size
        height, width = (-(-side // stride) for side in self.resized_size)
        return height, width

    def valid_mask(self, device: torch.device | None = None) -> Tensor:
        """(1, s, s) bool: the low-resolution pixels that are image, not padding."""
        height, width = self.low_res_valid_size
        valid = torch.zeros(1, self.low_res_size, self.low_res_size, dtype=torch.bool, device=device)
        valid[:, :height, :width] = True
        return valid

    def image_to_input(self, image: Tensor) -> Tensor:
        """Resize the window of an image; no padding, no normalisation.

        Args:
            image: (3, H, W) uint8 or float.

        Returns:
            (3, h, w) of the same type, h x w = `resized_size`, bilinear with antialiasing.
        """
        x0, y0, x1, y1 = self.window
        window = image[None, :, y0:y1, x0:x1]
        if window.shape[-2:] == self.resized_size:
            return window[0]
        # the kernel for bytes exists on the CPU alone
        pixels = window if image.is_floating_point() or image.device.type == "cpu" else window.float()
        resized = F.interpolate(pixels, self.resized_size, mode="bilinear", antialias=True, align_corners=False)[0]
        return resized if resized.dtype == image.dtype else resized.round().to(image.dtype)

    def coords_to_input(self, coords: Tensor) -> Tensor:
        """Map (..., 2) continuous (x, y) image coordinates to continuous coordinates of the model input."""
        origin, scale = (torch.tensor(values, device=coords.device) for values in (self.window[:2], self._scale))
        return (coords - origin) * scale

    def masks_to_low_res(self, masks: Tensor) -> Tensor:
        """Share of each low-resolution pixel that a mask covers.

        Args:
            masks: (N, H, W) bool in the image frame.

        Returns:
            (N, s, s) float32 in [0, 1]; 0 in the padding.
        """
        x0, y0, x1, y1 = self.window
        # bool -> float only inside the window, where the result can be non-zero
        return _resample(masks[:, y0:y1, x0:x1].float(), *self._window_to_low_res(masks.device))

    def logits_to_window(self, logits: Tensor) -> Tensor:
        """Bilinear interpolation of (N, s, s) logits at the pixels of the window: (N, y1 - y0, x1 - x0) float32."""
        stride = self.input_size // self.low_res_size
        (height, width), spans = self.window_size, [resized / stride for resized in self.resized_size]
        # the last pixel that holds any of the window bounds the interpolation: padding is never read
        rows, columns = (max(math.ceil(span), 1) for span in spans)
        # what F.interpolate calls, which takes either a size or a scale: here windows end within a pixel
        upsampled: Tensor = torch.ops.aten.upsample_bilinear2d(
            logits[:, None, :rows, :columns].float(), [height, width], False, height / spans[0], width / spans[1]
        )
        return upsampled[:, 0]

    @property
    def _scale(self) -> tuple[float, float]:
        """Model-input pixels an image pixel, (x, y): the two differ a little because sizes are whole pixels."""
        (height, width), (resized_height, resized_width) = self.window_size, self.resized_size
        return resized_width / width, resized_height / height

    def _window_to_low_res(self, device: torch.device) -> tuple[Tensor, Tensor]:
        stride = self.input_size // self.low_res_size
        sides = zip(self.window_size, self.resized_size, strict=True)
        height, width = (_area_matrix(source, resized / stride, self.low_res_size, device) for source, resized in sides)
        return height, width


def _resample(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply one matrix along the rows and one along the columns of (N, h, w) maps."""
    # in half precision, as autocast would have it, outlines would move
    with torch.autocast(maps.device.type, enabled=False):
        return rows @ (maps @ columns.T)


@lru_cache(maxsize=64)
def _area_matrix(source: int, span: float, target: int, device: torch.device) -> Tensor:
    """(target, source) weights of area resampling: `source` pixels are spread over the first `span` of `target`.

    Row i holds the share of target pixel i that each source pixel covers, so rows inside the span add up to 1.
    """
    scale = span / source
    edges = torch.arange(source + 1, dtype=torch.float64) * scale
    low, high = edges[:-1], edges[1:]
    pixel = torch.arange(target, dtype=torch.float64)[:, None]
    overlap = torch.minimum(high, pixel + 1) - torch.maximum(low, pixel)
    return overlap.clamp(min=0).float().to(device)
