"""The projector g between the decoder's features and the space in which CMRL compares them."""

from __future__ import annotations

from segment_anything.modeling.common import LayerNorm2d
from torch import nn


class Projector(nn.Sequential):
    """1x1 convolutions with channel LayerNorm and GELU between them (paper B.6, Table 8g).

    Maps (N, C, s, s) float to the same shape. The output is not normalised: `cmrl_loss` does that.

    Args:
        channels: C; 32 in SAM's decoder.
        num_layers: number of convolutions; 0 is the identity.

    Raises:
        ValueError: `num_layers` is negative.
    """

    def __init__(self, channels: int = 32, *, num_layers: int = 3) -> None:
        if num_layers < 0:
            raise ValueError(f"A projector cannot have {num_layers} layers: use 0 (identity) or more (the paper: 3).")
        layers: list[nn.Module] = []
        for _ in range(num_layers):
            if layers:
                layers += [LayerNorm2d(channels), nn.GELU()]
            layers.append(nn.Conv2d(channels, channels, kernel_size=1))
        super().__init__(*layers)
