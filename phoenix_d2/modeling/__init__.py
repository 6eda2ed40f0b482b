"""Detectron2 architectures: importing this package registers them."""

from phoenix_d2.modeling.phoenix import Phoenix
from phoenix_d2.modeling.promptable import PromptableDecoder
from phoenix_d2.modeling.refined_detector import RefinedDetector

__all__ = ["Phoenix", "PromptableDecoder", "RefinedDetector"]
