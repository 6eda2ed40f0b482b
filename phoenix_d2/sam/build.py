"""Build a `MaskRefiner` from the name of its encoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.sam.decoder import EMBED_DIM, MaskDecoder
from phoenix_d2.sam.detail import DetailMaskDecoder, DetailPromptEncoder
from phoenix_d2.sam.encoders import EncoderSpec, get_encoder
from phoenix_d2.sam.hq import HQMaskDecoder
from phoenix_d2.sam.prompt_encoder import PromptEncoder
from phoenix_d2.sam.transformer import TwoWayTransformer


def build_refiner(
    encoder: str = "vit_h",
    *,
    input_size: int = 0,
    prompter: CoarseMaskPrompter | None = None,
    options: RefineOptions | None = None,
) -> MaskRefiner:
    """Build a refiner with segment-anything's decoder behind the named encoder.

    Weights are random but for what an encoder's own package ships; see `phoenix_d2.sam.checkpoint`
    for loading official ones or a trained refiner's.

    Args:
        encoder: a name in `phoenix_d2.sam.encoders.ENCODERS`.
        input_size: side of the square model input in pixels; 0 is the encoder's own.
        prompter: turns coarse masks into prompts; Phoenix' defaults when None.
        options: how masks are refined; the defaults of `RefineOptions` when None.

    Raises:
        ImportError: the encoder needs a package that is not installed.
        ValueError: there is no encoder of that name, or it does not take that input size.
    """
    spec = get_encoder(encoder)
    input_size = spec.check_input_size(input_size)
    embedding_side = input_size // spec.stride
    prompt_encoder, mask_decoder = _heads(spec)
    return MaskRefiner(
        image_encoder=spec.build(),
        prompt_encoder=prompt_encoder(
            embed_dim=EMBED_DIM,
            image_embedding_size=(embedding_side, embedding_side),
            input_image_size=(input_size, input_size),
            mask_in_chans=16,
        ),
        mask_decoder=mask_decoder(transformer=_build_transformer(spec.norm_eps), transformer_dim=EMBED_DIM),
        prompter=prompter or CoarseMaskPrompter(),
        options=options or RefineOptions(),
        encoder_name=encoder,
        pixel_mean=spec.pixel_mean,
        pixel_std=spec.pixel_std,
        frozen=spec.frozen,
    )


def _build_transformer(norm_eps: float) -> TwoWayTransformer:
    transformer = TwoWayTransformer(depth=2, embedding_dim=EMBED_DIM, mlp_dim=2048, num_heads=8)
    for module in transformer.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = norm_eps
    return transformer


def _heads(spec: EncoderSpec) -> tuple[type[PromptEncoder], Callable[..., MaskDecoder]]:
    """The prompt encoder and the decoder that suit what an encoder hands on."""
    if spec.detail:
        return DetailPromptEncoder, DetailMaskDecoder
    if spec.early_channels:
        return PromptEncoder, partial(HQMaskDecoder, early_channels=spec.early_channels)
    return PromptEncoder, MaskDecoder
