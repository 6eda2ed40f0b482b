"""The decoder against segment-anything's own."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, Sam
from segment_anything.modeling import MaskDecoder as SamMaskDecoder
from segment_anything.modeling import PromptEncoder as SamPromptEncoder
from segment_anything.modeling import TwoWayTransformer as SamTwoWayTransformer
from torch import Tensor, nn

from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.sam.decoder import MaskDecoder
from phoenix_d2.sam.prompt_encoder import PromptEncoder
from phoenix_d2.sam.transformer import TwoWayTransformer
from phoenix_d2.structures import Prompts

IMAGE_SIZE, RESIZED, INPUT_SIZE = (481, 640), (192, 256), 256


def build_encoder() -> ImageEncoderViT:
    return ImageEncoderViT(
        img_size=INPUT_SIZE,
        embed_dim=32,
        depth=2,
        num_heads=2,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=7,
        global_attn_indexes=(1,),
    )


TRANSFORMER = {"depth": 2, "embedding_dim": 256, "mlp_dim": 2048, "num_heads": 8}


PROMPT_ENCODER = {
    "embed_dim": 256,
    "image_embedding_size": (INPUT_SIZE // 16, INPUT_SIZE // 16),
    "input_image_size": (INPUT_SIZE, INPUT_SIZE),
    "mask_in_chans": 16,
}


@pytest.fixture(scope="module")
def predictor() -> SamPredictor:
    """segment-anything with a small encoder, looking at a random image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = SamMaskDecoder(transformer=SamTwoWayTransformer(**TRANSFORMER), transformer_dim=256)
        sam = Sam(build_encoder(), SamPromptEncoder(**PROMPT_ENCODER), decoder).eval()
        predictor = SamPredictor(sam)
        predictor.set_torch_image(torch.randint(0, 256, (1, 3, *RESIZED)).float(), IMAGE_SIZE)
    return predictor


@pytest.fixture(scope="module")
def refiner(predictor: SamPredictor) -> MaskRefiner:
    """Ours with the same weights."""
    refiner = MaskRefiner(
        image_encoder=build_encoder(),
        prompt_encoder=PromptEncoder(**PROMPT_ENCODER),
        mask_decoder=MaskDecoder(transformer=TwoWayTransformer(**TRANSFORMER), transformer_dim=256),
        prompter=CoarseMaskPrompter(),
        options=RefineOptions(),
        encoder_name="small",
        pixel_mean=predictor.model.pixel_mean.flatten().tolist(),
        pixel_std=predictor.model.pixel_std.flatten().tolist(),
    )
    refiner.load_state_dict(predictor.model.state_dict(), strict=True)
    return refiner.eval()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def random_points(n: int = 3) -> Tensor:
    return torch.rand(n, 2, 2, generator=generator()) * torch.tensor(RESIZED[::-1])


POINT_LABELS = torch.tensor([[1, 0], [0, 0], [1, 1]])
BOXES = torch.tensor([[10.0, 20.0, 90.0, 100.0], [0.0, 0.0, 255.0, 191.0], [200.5, 30.25, 220.0, 180.0]])
PADDING = torch.full((3, 1), -1)
CORNERS = torch.tensor([[2, 3]]).expand(3, 2)
LOW_RES_MASKS = torch.randn(3, 1, INPUT_SIZE // 4, INPUT_SIZE // 4, generator=generator()) * 10

QUESTIONS: dict[str, tuple[dict[str, Any], Prompts]] = {
    "points": (
        {"point_coords": random_points(), "point_labels": POINT_LABELS},
        Prompts(
            torch.cat([random_points(), torch.zeros(3, 1, 2)], 1),
            torch.cat([POINT_LABELS, PADDING], 1),
        ),
    ),
    "boxes": (
        {"point_coords": None, "point_labels": None, "boxes": BOXES},
        Prompts(BOXES.view(3, 2, 2), CORNERS),
    ),
    "points and boxes": (
        {"point_coords": random_points(), "point_labels": POINT_LABELS, "boxes": BOXES},
        Prompts(torch.cat([random_points(), BOXES.view(3, 2, 2)], 1), torch.cat([POINT_LABELS, CORNERS], 1)),
    ),
    "masks": (
        {"point_coords": None, "point_labels": None, "mask_input": LOW_RES_MASKS},
        Prompts(torch.zeros(3, 0, 2), torch.zeros(3, 0, dtype=torch.long), LOW_RES_MASKS),
    ),
    "all": (
        {
            "point_coords": random_points(),
            "point_labels": POINT_LABELS,
            "boxes": BOXES,
            "mask_input": LOW_RES_MASKS,
        },
        Prompts(
            torch.cat([random_points(), BOXES.view(3, 2, 2)], 1), torch.cat([POINT_LABELS, CORNERS], 1), LOW_RES_MASKS
        ),
    ),
}


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("multimask", [True, False])
@torch.no_grad()
def test_same_weights_same_answer_as_segment_anything(
    predictor: SamPredictor, refiner: MaskRefiner, question: str, multimask: bool
) -> None:
    theirs, ours = QUESTIONS[question]
    _, iou_predictions, low_res_logits = predictor.predict_torch(
        **theirs, multimask_output=multimask, return_logits=True
    )
    prediction = refiner.decode(predictor.features, ours)
    prediction = prediction.multimask() if multimask else prediction.single()
    assert low_res_logits.std() > 0.01, "a constant answer would prove nothing"
    close(prediction.low_res_logits, low_res_logits)
    close(prediction.iou_predictions, iou_predictions)


@torch.no_grad()
def test_same_embedding_of_an_image_as_segment_anything(predictor: SamPredictor, refiner: MaskRefiner) -> None:
    image = torch.randint(0, 256, (3, *RESIZED), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    expected = predictor.model.image_encoder(predictor.model.preprocess(image[None].float()))
    close(refiner.encode_image(refiner.preprocess(image, refiner.frame(RESIZED))[None]), expected)


@torch.no_grad()
def test_same_masks_in_the_image_as_segment_anything(predictor: SamPredictor, refiner: MaskRefiner) -> None:
    # blobs some low-resolution pixels wide, as decoders draw them
    noise = torch.randn(6, 1, INPUT_SIZE // 4, INPUT_SIZE // 4, generator=generator())
    logits = F.avg_pool2d(F.avg_pool2d(noise, 9, 1, 4), 9, 1, 4)
    expected = predictor.model.postprocess_masks(logits, RESIZED, IMAGE_SIZE)[:, 0] > 0
    ours = refiner.frame(IMAGE_SIZE).logits_to_window(logits[:, 0]) > 0
    assert 0.3 < expected.float().mean() < 0.7
    assert (ours == expected).float().mean() > 0.999


@torch.no_grad()
def test_masks_of_different_images_share_a_batch(refiner: MaskRefiner) -> None:
    embeddings = torch.randn(3, 256, 16, 16, generator=generator())
    prompts = QUESTIONS["all"][1]
    together = refiner.decode(embeddings, prompts)
    for i in range(3):
        alone = refiner.decode(embeddings[i, None], prompts[i : i + 1])
        close(together.low_res_logits[i], alone.low_res_logits[0])
        close(together.iou_predictions[i], alone.iou_predictions[0])
        close(together.features[i], alone.features[0])


@torch.no_grad()
def test_one_embedding_serves_all_masks(refiner: MaskRefiner) -> None:
    embedding = torch.randn(1, 256, 16, 16, generator=generator())
    prompts = QUESTIONS["boxes"][1]
    shared = refiner.decode(embedding, prompts)
    repeated = refiner.decode(embedding.repeat(3, 1, 1, 1), prompts)
    close(shared.low_res_logits, repeated.low_res_logits)
    assert shared.features.shape == (3, 32, 64, 64)


@torch.no_grad()
def test_no_masks_decode_to_no_masks(refiner: MaskRefiner) -> None:
    prediction = refiner.decode(torch.zeros(0, 256, 16, 16), QUESTIONS["boxes"][1][:0])
    assert prediction.low_res_logits.shape == (0, 4, 64, 64) and prediction.iou_predictions.shape == (0, 4)
    assert prediction.features.shape == (0, 32, 64, 64)


def test_candidates_are_read_from_the_features(refiner: MaskRefiner) -> None:
    """Each candidate is a linear map of the features: fitted to one half of the pixels, it holds for the other."""
    with torch.no_grad():
        prediction = refiner.decode(torch.randn(1, 256, 16, 16, generator=generator()), QUESTIONS["points"][1][:1])
    features, logits = prediction.features[0].flatten(1).T.double(), prediction.low_res_logits[0].flatten(1).T.double()
    weights = torch.linalg.lstsq(features[::2], logits[::2], driver="gelsd").solution
    torch.testing.assert_close(features[1::2] @ weights, logits[1::2], atol=1e-5, rtol=1e-4)


def test_gradients_reach_prompt_embeddings_and_features(refiner: MaskRefiner) -> None:
    sparse = torch.randn(2, 5, 256, generator=generator()).requires_grad_()
    dense = refiner.prompt_encoder.no_mask_embeddings(2).detach()
    prediction = refiner.decode_embeddings(torch.randn(1, 256, 16, 16, generator=generator()), sparse, dense)
    by_logits, by_features = (
        torch.autograd.grad(output.square().sum(), sparse, retain_graph=True)[0]
        for output in (prediction.low_res_logits, prediction.features)
    )
    assert by_logits.abs().sum() > 0 and by_features.abs().sum() > 0
