"""Image encoders by name.

An encoder maps (B, 3, S, S) normalised images to (B, 256, h, w) embeddings, what its decoder wants to see besides
in channels behind them. Its entry also says how images must be prepared, so that weights never travel without their
preprocessing; all are resized to the long side S, normalised, and padded with 0 at the bottom and on the right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from phoenix_d2.sam.encoders.efficientvit import NORM_EPS as EFFICIENTVIT_NORM_EPS
from phoenix_d2.sam.encoders.efficientvit import build_efficientvit
from phoenix_d2.sam.encoders.tiny import build_tiny_encoder
from phoenix_d2.sam.encoders.tiny_vit import EARLY_CHANNELS, build_tiny_vit
from phoenix_d2.sam.encoders.vit import EMBED_DIMS, PATCH_SIZE, build_vit

SAM_PIXEL_MEAN = (123.675, 116.28, 103.53)
SAM_PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """How to build an image encoder, and what it wants to be fed.

    Attributes:
        build: makes the module; what it loads by itself (the ImageNet weights of `tiny`) comes with an
            installed package, never from the network.
        input_size: side of the square input in pixels.
        stride: input pixels a side of an embedding's pixel.
        input_multiple: other sides may be asked for if they are multiples of this; None: there is no other.
        pixel_mean, pixel_std: of RGB values in 0 to 255.
        frozen: names of the submodules that no training may change; "" is the whole encoder. One of which only
            ("backbone",) is frozen computes `neck(backbone(images))`.
        detail: embeddings carry fine maps for a decoder of stride 2 (see `sam.detail`).
        early_channels: embeddings carry that many channels of early features for HQ-SAM's decoder (see `sam.hq`).
        norm_eps: of the layer normalisations in the decoder's transformer.
    """

    build: Callable[[], nn.Module]
    input_size: int = 1024
    stride: int = 16
    input_multiple: int | None = None
    pixel_mean: tuple[float, float, float] = SAM_PIXEL_MEAN
    pixel_std: tuple[float, float, float] = SAM_PIXEL_STD
    frozen: tuple[str, ...] = ("",)
    detail: bool = False
    early_channels: int = 0
    norm_eps: float = 1e-5

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
    "vit_b": EncoderSpec(build=partial(build_vit, "b"), input_multiple=PATCH_SIZE),
    "vit_l": EncoderSpec(build=partial(build_vit, "l"), input_multiple=PATCH_SIZE),
    "vit_h": EncoderSpec(build=partial(build_vit, "h"), input_multiple=PATCH_SIZE),
    "hq_vit_b": EncoderSpec(
        build=partial(build_vit, "b", early_features=True), input_multiple=PATCH_SIZE, early_channels=EMBED_DIMS["b"]
    ),
    "hq_vit_l": EncoderSpec(
        build=partial(build_vit, "l", early_features=True), input_multiple=PATCH_SIZE, early_channels=EMBED_DIMS["l"]
    ),
    "hq_vit_h": EncoderSpec(
        build=partial(build_vit, "h", early_features=True), input_multiple=PATCH_SIZE, early_channels=EMBED_DIMS["h"]
    ),
    "hq_vit_tiny": EncoderSpec(build=partial(build_tiny_vit, early_features=True), early_channels=EARLY_CHANNELS),
    "mobile_sam": EncoderSpec(build=build_tiny_vit),
    "efficientvit_sam_l0": EncoderSpec(
        build=partial(build_efficientvit, "l0"), input_size=512, stride=8, norm_eps=EFFICIENTVIT_NORM_EPS
    ),
    "efficientvit_sam_l1": EncoderSpec(
        build=partial(build_efficientvit, "l1"), input_size=512, stride=8, norm_eps=EFFICIENTVIT_NORM_EPS
    ),
    "efficientvit_sam_l2": EncoderSpec(
        build=partial(build_efficientvit, "l2"), input_size=512, stride=8, norm_eps=EFFICIENTVIT_NORM_EPS
    ),
    "efficientvit_sam_xl0": EncoderSpec(build=partial(build_efficientvit, "xl0"), norm_eps=EFFICIENTVIT_NORM_EPS),
    "efficientvit_sam_xl1": EncoderSpec(build=partial(build_efficientvit, "xl1"), norm_eps=EFFICIENTVIT_NORM_EPS),
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
