"""A backbone that need not be trained: EfficientNet-Lite0 with its ImageNet weights, which come with a package."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor

from phoenix_d2.sam.encoders.tiny import build_tiny_encoder


class FrozenLite0(Backbone):
    """EfficientNet-Lite0 as a ResNet would be: (B, 3, H, W) -> {"res2": stride 4, ..., "res5": stride 32}."""

    def __init__(self) -> None:
        super().__init__()
        self.network = build_tiny_encoder().backbone
        # the first map, of stride 2, has no counterpart
        channels = dict(zip(("res2", "res3", "res4", "res5"), self.network.out_channels[1:], strict=True))
        self._out_features = list(channels)
        self._out_feature_channels = channels
        self._out_feature_strides = {name: 4 * 2**level for level, name in enumerate(channels)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._out_features, self.network(images)[1:], strict=True))


@BACKBONE_REGISTRY.register()
def build_frozen_lite0_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The feature pyramid of `MODEL.FPN`, which is trained, on EfficientNet-Lite0, which is not."""
    return FPN(
        bottom_up=FrozenLite0(),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
    )
