"""HQ-SAM's decoder and early features against the official package, in small."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from segment_anything.modeling import TwoWayTransformer
from torch import nn

from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.sam.encoders.vit import EarlyFeaturesViTEncoder
from phoenix_d2.sam.hq import HQMaskDecoder
from phoenix_d2.sam.prompt_encoder import PromptEncoder
from phoenix_d2.structures import Prompts

IMAGE_SIZE, RESIZED, INPUT_SIZE, VIT_DIM = (300, 400), (96, 128), 128, 32

VIT: dict[str, Any] = {
    "img_size": INPUT_SIZE,
    "embed_dim": VIT_DIM,
    "depth": 4,
    "num_heads": 2,
    "norm_layer": partial(nn.LayerNorm, eps=1e-6),
    "use_rel_pos": True,
    "window_size": 7,
    "global_attn_indexes": (1, 3),
}
PROMPT_ENCODER: dict[str, Any] = {
    "embed_dim": 256,
    "image_embedding_size": (INPUT_SIZE // 16, INPUT_SIZE // 16),
    "input_image_size": (INPUT_SIZE, INPUT_SIZE),
    "mask_in_chans": 16,
}
POINTS, LABELS = torch.tensor([[[30.0, 20.0]], [[90.0, 64.0]], [[5.0, 90.0]]]), torch.tensor([[1], [1], [0]])


def build_ours(pixel_mean: list[float], pixel_std: list[float]) -> MaskRefiner:
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    return MaskRefiner(
        image_encoder=EarlyFeaturesViTEncoder(**VIT),
        prompt_encoder=PromptEncoder(**PROMPT_ENCODER),
        mask_decoder=HQMaskDecoder(early_channels=VIT_DIM, transformer=transformer, transformer_dim=256),
        prompter=CoarseMaskPrompter(),
        options=RefineOptions(),
        encoder_name="small",
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
    ).eval()


@pytest.fixture(scope="module")
def predictor() -> Any:
    """HQ-SAM with a small encoder, looking at a random image."""
    pytest.importorskip("timm", reason="needs the extra 'encoders'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("segment_anything_hq", reason="needs the extra 'encoders'")
    from segment_anything_hq import modeling

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
        decoder = modeling.MaskDecoderHQ(transformer=transformer, transformer_dim=256, vit_dim=VIT_DIM)
        sam = modeling.Sam(modeling.ImageEncoderViT(**VIT), modeling.PromptEncoder(**PROMPT_ENCODER), decoder)
        predictor = package.SamPredictor(sam.eval())
        predictor.set_torch_image(torch.randint(0, 256, (1, 3, *RESIZED)).float(), IMAGE_SIZE)
    return predictor


@pytest.mark.parametrize("multimask", [True, False])
@torch.no_grad()
def test_same_weights_same_answer_as_hq_sam(predictor: Any, multimask: bool) -> None:
    model = predictor.model
    ours = build_ours(model.pixel_mean.flatten().tolist(), model.pixel_std.flatten().tolist())
    ours.load_state_dict(model.state_dict(), strict=True)
    embedding = torch.cat([predictor.features, predictor.interm_features[0].permute(0, 3, 1, 2)], dim=1)

    _, iou_predictions, low_res_logits = predictor.predict_torch(
        POINTS, LABELS, multimask_output=multimask, return_logits=True
    )
    prompts = Prompts(torch.cat([POINTS, torch.zeros(3, 1, 2)], 1), torch.cat([LABELS, torch.full((3, 1), -1)], 1))
    prediction = ours.decode(embedding, prompts)
    prediction = prediction.multimask().best() if multimask else prediction.single()
    assert low_res_logits.std() > 0.01, "a constant answer would prove nothing"
    torch.testing.assert_close(prediction.low_res_logits, low_res_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prediction.iou_predictions, iou_predictions, atol=1e-5, rtol=1e-5)

    pixels = torch.randint(0, 256, (3, *RESIZED), dtype=torch.uint8)
    expected, early = model.image_encoder(model.preprocess(pixels[None].float()))
    embedding = ours.encode_image(ours.preprocess(pixels, ours.frame(RESIZED))[None])
    torch.testing.assert_close(embedding[:, :256], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embedding[:, 256:], early[0].permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


def test_masks_are_refined_and_the_correction_is_trained() -> None:
    refiner = build_ours([120.0] * 3, [60.0] * 3)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *RESIZED), dtype=torch.uint8, generator=generator)
    masks = torch.zeros(2, *RESIZED, dtype=torch.bool)
    masks[0, 10:60, 20:90], masks[1, 30:90, 50:120] = True, True
    assert refiner.refine(image, masks).masks.shape == masks.shape

    embeddings = torch.randn(2, 256 + VIT_DIM, 8, 8, generator=generator)
    prompts = Prompts(POINTS[:2], LABELS[:2])
    refiner.decode(embeddings, prompts).low_res_logits.sum().backward()
    assert all(parameter.grad is not None for parameter in refiner.mask_decoder.compress_vit_feat.parameters())
    none = refiner.decode(embeddings[:0], prompts[:0])
    assert none.low_res_logits.shape == (0, 4, 32, 32)
