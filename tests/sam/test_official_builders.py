"""Every encoder against the model that its official builder makes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import sam_model_registry
from torch import Tensor, nn

from phoenix_d2.sam.build import build_refiner
from phoenix_d2.sam.checkpoint import load_encoder
from phoenix_d2.sam.encoders import ENCODERS
from phoenix_d2.sam.official import CHECKPOINTS
from phoenix_d2.structures import Prompts

TINY_VITS = ["hq_vit_tiny", "mobile_sam"]


def build_official(name: str) -> nn.Module:
    """The whole model, of random weights."""
    if name.startswith("efficientvit_sam"):
        zoo = pytest.importorskip("efficientsam.sam_model_zoo", reason="needs the extra 'encoders'")
        return zoo.create_efficientvit_sam_model(name.replace("_", "-"), pretrained=False).eval()
    if name in ("vit_b", "vit_l", "vit_h"):
        return sam_model_registry[name]()
    pytest.importorskip("timm", reason="needs the extra 'encoders'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("segment_anything_hq", reason="needs the extra 'encoders'")
    if name == "mobile_sam":
        return package.sam_model_registry_baseline["vit_tiny"]()
    return package.sam_model_registry[name.removeprefix("hq_")]()


def randomize(model: nn.Module) -> nn.Module:
    """Random values also where fresh weights are 0 or 1, so that every parameter matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_parameters_are_those_of_the_official_model(name: str) -> None:
    # TinyViT computes with values while it is built
    with torch.device("cpu" if name in TINY_VITS else "meta"):
        official, ours = build_official(name), build_refiner(name)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in official.state_dict().items()
    }


@pytest.mark.slow
@torch.no_grad()
def test_tiny_vit_embeds_as_the_official_model_once_its_checkpoint_is_loaded(tmp_path: Path) -> None:
    official = randomize(build_official("hq_vit_tiny"))
    torch.save(official.state_dict(), tmp_path / "official.pth")
    ours = build_refiner("hq_vit_tiny").eval()
    load_encoder(ours, tmp_path / "official.pth")
    images = torch.randn(1, 3, 1024, 1024)
    embedding, early = official.eval().image_encoder(images)
    close(ours.encode_image(images), torch.cat([embedding, early[0].permute(0, 3, 1, 2)], 1))


def test_mobile_sams_encoder_is_the_same_tiny_vit_without_early_features(monkeypatch: Any) -> None:
    theirs, ours = build_official("mobile_sam").image_encoder, ENCODERS["mobile_sam"].build()
    assert [type(module) for module in ours.modules()] == [type(module) for module in theirs.modules()]
    ours.load_state_dict(randomize(theirs).state_dict())
    theirs.eval()
    for mine, other in zip(ours.modules(), theirs.modules(), strict=True):
        assert not hasattr(mine, "ab") or mine.ab.equal(other.ab), "attention biases of before the weights were loaded"
    embedding, early = torch.randn(1, 256, 2, 2), torch.randn(1, 2, 2, 160)
    monkeypatch.setattr(ours, "forward", lambda _: (embedding, [early]))
    assert ours(torch.zeros(1)).equal(embedding)


@torch.no_grad()
def test_efficientvit_answers_as_the_official_predictor() -> None:
    official = build_official("efficientvit_sam_l0")
    ours = build_refiner("efficientvit_sam_l0").eval()
    ours.load_state_dict(official.state_dict(), strict=True)
    from efficientsam.models.efficientvit.sam import EfficientViTSamPredictor

    image = np.random.default_rng(0).integers(0, 256, (384, 512, 3), np.uint8)
    predictor = EfficientViTSamPredictor(official)
    predictor.set_image(image)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    embedding = ours.encode_image(ours.preprocess(pixels, ours.frame((384, 512)))[None])
    close(embedding, predictor.features)

    # the official decoder works in a frame of 1,024 pixels, ours in the encoder's of 512
    points = torch.tensor([[[300.0, 200.0], [100.0, 40.0]], [[900.0, 500.0], [700.0, 760.0]]])
    labels, masks = torch.tensor([[1, 0], [1, 1]]), 5 * torch.randn(2, 1, 256, 256)
    _, iou_predictions, low_res_logits = predictor.predict_torch(points, labels, mask_input=masks, return_logits=True)
    padding = (torch.zeros(2, 1, 2), torch.full((2, 1), -1))
    prompts = Prompts(torch.cat([(points + 0.5) / 2 - 0.5, padding[0]], 1), torch.cat([labels, padding[1]], 1), masks)
    prediction = ours.decode(predictor.features, prompts).multimask()
    assert low_res_logits.std() > 0.01, "a constant answer would prove nothing"
    close(prediction.low_res_logits, low_res_logits)
    close(prediction.iou_predictions, iou_predictions)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["efficientvit_sam_l0", *TINY_VITS])
def test_a_missing_package_is_named(name: str, monkeypatch: Any) -> None:
    for module in ("efficientsam.sam_model_zoo", "segment_anything_hq"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'phoenix_d2\[encoders\]'"):
        ENCODERS[name].build()
