"""EfficientViT-SAM's image encoders (Zhang et al. 2024), from the package `efficientsam`."""

from __future__ import annotations

from torch import nn

# of every normalisation in the model, its decoder's too
NORM_EPS = 1e-6


def build_efficientvit(size: str) -> nn.Module:
    """Build an EfficientViT-SAM encoder.

    Whatever the input, its embedding has 64 x 64 pixels: a stride of 8 for the 512 pixels of L0 to L2, and of 16 for
    the 1,024 of XL0 and XL1.

    Args:
        size: "l0", "l1", "l2", "xl0" or "xl1".

    Raises:
        ImportError: the package of the extra `encoders` is not installed.
    """
    try:
        from efficientsam.sam_model_zoo import create_efficientvit_sam_model
    except ImportError as error:
        raise ImportError(
            f"The encoder 'efficientvit_sam_{size}' needs one more package: pip install 'phoenix_d2[encoders]'."
        ) from error
    encoder: nn.Module = create_efficientvit_sam_model(f"efficientvit-sam-{size}", pretrained=False).image_encoder
    return encoder
