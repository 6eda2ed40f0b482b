"""The decoder of stride 2 beside the one of stride 4 that it extends."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from segment_anything.modeling import TwoWayTransformer
from torch import Tensor

from phoenix_d2.sam.decoder import EMBED_DIM, MaskDecoder
from phoenix_d2.sam.detail import DETAIL_CHANNELS, FOLD, DetailMaskDecoder, DetailPromptEncoder
from phoenix_d2.sam.prompt_encoder import PromptEncoder
from phoenix_d2.structures import PointLabel, Prompts

SIDE = 4
LOW_RES = FOLD * SIDE


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def prompt_arguments() -> dict[str, object]:
    return {
        "embed_dim": EMBED_DIM,
        "image_embedding_size": (SIDE, SIDE),
        "input_image_size": (16 * SIDE, 16 * SIDE),
        "mask_in_chans": 16,
    }


@pytest.fixture(scope="module")
def prompt_encoder() -> DetailPromptEncoder:
    return DetailPromptEncoder(**prompt_arguments()).eval()


@pytest.fixture(scope="module")
def decoder() -> DetailMaskDecoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = TwoWayTransformer(depth=2, embedding_dim=EMBED_DIM, mlp_dim=64, num_heads=8)
        return DetailMaskDecoder(transformer=transformer, transformer_dim=EMBED_DIM).eval()


def prompts(n: int = 2) -> Prompts:
    coords = torch.rand(n, 2, 2, generator=generator()) * 16 * SIDE
    labels = torch.tensor([PointLabel.FOREGROUND, PointLabel.BACKGROUND]).expand(n, 2)
    return Prompts(coords, labels, 10 * torch.randn(n, 1, LOW_RES, LOW_RES, generator=generator()))


def embeddings(n: int = 2) -> Tensor:
    return torch.randn(n, EMBED_DIM + DETAIL_CHANNELS * FOLD**2, SIDE, SIDE, generator=generator())


@torch.no_grad()
def test_of_a_prompt_under_attack_only_what_was_embedded_stays(prompt_encoder: DetailPromptEncoder) -> None:
    """Else the decoder passes the target on, whatever the attack does."""
    _, dense = prompt_encoder.encode(prompts())
    kept = prompt_encoder.without_mask(dense)
    assert kept.shape == dense.shape
    assert torch.equal(kept[:, :EMBED_DIM], dense[:, :EMBED_DIM])
    assert kept[:, EMBED_DIM:].abs().max() == 0 < dense[:, EMBED_DIM:].abs().max()


@torch.no_grad()
def test_mask_prompts_are_read_at_stride_4_and_handed_on_at_stride_2(prompt_encoder: DetailPromptEncoder) -> None:
    plain = PromptEncoder(**prompt_arguments()).eval()
    plain.load_state_dict(prompt_encoder.state_dict(), strict=True)
    given = prompts()
    sparse, dense = prompt_encoder.encode(given)
    halved = Prompts(given.point_coords, given.point_labels, F.avg_pool2d(given.mask_logits, 2))
    expected_sparse, expected_dense = plain.encode(halved)
    torch.testing.assert_close(sparse, expected_sparse)
    torch.testing.assert_close(dense[:, :EMBED_DIM], expected_dense)
    handed_on = F.pixel_shuffle(dense[:, EMBED_DIM:], FOLD)
    assert handed_on.shape == given.mask_logits.shape
    assert torch.equal(handed_on > 0, given.mask_logits > 0) and handed_on.abs().max() <= 1


@torch.no_grad()
def test_an_absent_mask_prompt_says_nothing_of_any_pixel(prompt_encoder: DetailPromptEncoder) -> None:
    given = prompts()
    _, dense = prompt_encoder.encode(Prompts(given.point_coords, given.point_labels))
    assert torch.equal(dense, prompt_encoder.no_mask_embeddings(2))
    assert not dense[:, EMBED_DIM:].any() and dense[:, :EMBED_DIM].any()


@torch.no_grad()
def test_before_training_it_says_what_the_coarser_decoder_says(
    prompt_encoder: DetailPromptEncoder, decoder: DetailMaskDecoder
) -> None:
    plain = MaskDecoder(transformer=decoder.transformer, transformer_dim=EMBED_DIM).eval()
    plain.load_state_dict(decoder.state_dict(), strict=False)
    sparse, dense = prompt_encoder.encode(prompts())
    image_pe = prompt_encoder.get_dense_pe()
    fine = decoder.decode(embeddings(), image_pe, sparse, dense)
    coarse = plain.decode(embeddings()[:, :EMBED_DIM], image_pe, sparse, dense[:, :EMBED_DIM])
    assert fine.low_res_logits.shape == (2, 4, LOW_RES, LOW_RES) and fine.features.shape == (2, 32, LOW_RES, LOW_RES)
    assert fine.prompt_iou_predictions.shape == (2,) and coarse.prompt_iou_predictions is None
    torch.testing.assert_close(fine.iou_predictions, coarse.iou_predictions)
    doubled = F.interpolate(coarse.low_res_logits, scale_factor=2.0, mode="bilinear", align_corners=False)
    torch.testing.assert_close(fine.low_res_logits, doubled)


def test_fine_maps_and_the_prompt_reach_the_pixels_that_they_belong_to(
    prompt_encoder: DetailPromptEncoder, decoder: DetailMaskDecoder
) -> None:
    """The features of a pixel hang on details and prompt of its 5 x 5 neighbourhood (two 3 x 3 convolutions)."""
    sparse, dense = (x.detach() for x in prompt_encoder.encode(prompts(1)))
    image = embeddings(1)
    fold = torch.zeros(1, DETAIL_CHANNELS, LOW_RES, LOW_RES, requires_grad=True)
    prompt = torch.zeros(1, 1, LOW_RES, LOW_RES, requires_grad=True)
    prediction = decoder.decode(
        torch.cat([image[:, :EMBED_DIM], F.pixel_unshuffle(fold, FOLD)], 1),
        prompt_encoder.get_dense_pe(),
        sparse,
        torch.cat([dense[:, :EMBED_DIM], F.pixel_unshuffle(prompt, FOLD)], 1),
    )
    row, column = 10, 21
    gradients = torch.autograd.grad(prediction.features[0, :, row, column].sum(), (fold, prompt))
    for gradient in gradients:
        reached = gradient[0].abs().amax(0).nonzero()
        assert reached.amin(0).tolist() == [row - 2, column - 2]
        assert reached.amax(0).tolist() == [row + 2, column + 2]


@torch.no_grad()
def test_stride_4_pixels_become_2_by_2(decoder: DetailMaskDecoder) -> None:
    """The linear upscaling is a transposed convolution of kernel and stride 2."""
    features = torch.randn(1, 32, 6, 6, generator=generator())
    details = torch.zeros(1, DETAIL_CHANNELS, 12, 12)
    prompt = torch.zeros(1, 1, 12, 12)
    linear = decoder.detail_upscaling
    kernel = linear.weight.view(2, 2, 32, 32).permute(3, 2, 0, 1)
    upscaled = F.conv_transpose2d(features, kernel, stride=2) + linear.bias.view(2, 2, 32).permute(2, 0, 1).repeat(
        1, 6, 6
    )
    x = F.gelu(upscaled + decoder.detail_input(torch.cat([details, prompt], 1)))
    expected = F.gelu(x + decoder.detail_mixing(x))
    torch.testing.assert_close(decoder._detail_features(features, details, prompt), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_embedding_serves_all_masks(prompt_encoder: DetailPromptEncoder, decoder: DetailMaskDecoder) -> None:
    sparse, dense = prompt_encoder.encode(prompts(3))
    image_pe = prompt_encoder.get_dense_pe()
    shared = decoder.decode(embeddings(1), image_pe, sparse, dense)
    repeated = decoder.decode(embeddings(1).repeat(3, 1, 1, 1), image_pe, sparse, dense)
    torch.testing.assert_close(shared.low_res_logits, repeated.low_res_logits)
