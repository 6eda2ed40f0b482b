"""Image encoders by name.

An encoder maps (B, 3, S, S) normalised images to (B, 256, S / 16, S / 16) embeddings; its entry also
says how images must be prepared, so that weights never travel without their preprocessing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from phoenix_d2.sam.encoders.tiny import build_tiny_encoder
from phoenix_d2.sam.encoders.vit import build_vit_b, build_vit_h, build_vit_l

SAM_PIXEL_MEAN = (123.675, 116.28, 103.53)
SAM_PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """How to build an image encoder, and what it wants to be fed.

    Attributes:
        build: makes the module; what it loads by itself (the ImageNet weights of `tiny`) comes with an
            installed package, never from the network.
        input_size: side of the square input in pixels.
        input_multiple: other sides may be asked for if they are multiples of this; None: there is no other.
        pixel_mean, pixel_std: of RGB values in 0 to 255.
        frozen: names of the submodules that no training may change; "" is the whole encoder. One of which only
            ("backbone",) is frozen computes `neck(backbone(images))`.
        detail: embeddings carry fine maps for a decoder of stride 2 (see `sam.detail`).
    """

    build: Callable[[], nn.Module]
    input_size: int = 1024
    input_multiple: int | None = None
    pixel_mean: tuple[float, float, float] = SAM_PIXEL_MEAN
    pixel_std: tuple[float, float, float] = SAM_PIXEL_STD
    frozen: tuple[str, ...] = ("",)
    detail: bool = False

    def check_input_size(self, input_size: int) -> int:
        """The side `input_size` itself, or this encoder's own for 0.

        Raises:
            ValueError: the encoder does not take images of this side.
        """
        if input_size in (0, self.input_size):
            return self.input_size
        if self.input_multiple is None or input_size < 0 or input_size % self.input_multiple:
            possible = (
                f"a multiple of {self.input_multiple}" if self.input_multiple else f"{self.input_size}, its only one"
            )
            raise ValueError(f"Input size {input_size} does not fit this encoder: expected {possible}.")
        return input_size


ENCODERS: dict[str, EncoderSpec] = {
    "vit_b": EncoderSpec(build=build_vit_b),
    "vit_l": EncoderSpec(build=build_vit_l),
    "vit_h": EncoderSpec(build=build_vit_h),
    "tiny": EncoderSpec(
        build=build_tiny_encoder,
        input_size=512,
        input_multiple=32,
        # what EfficientNet-Lite was trained with
        pixel_mean=(127.0, 127.0, 127.0),
        pixel_std=(128.0, 128.0, 128.0),
        frozen=("backbone",),
        detail=True,
    ),
}


def get_encoder(name: str) -> EncoderSpec:
    """The entry of an encoder.

    Raises:
        ValueError: there is none of that name; the message lists the known ones.
    """
    if name not in ENCODERS:
        raise ValueError(f"Unknown image encoder {name!r}: expected one of {', '.join(sorted(ENCODERS))}.")
    return ENCODERS[name]
