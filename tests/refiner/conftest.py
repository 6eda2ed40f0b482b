"""A refiner of random weights, one that answers with what it is asked, and what goes through them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.structures import MaskPrediction, Prompts
from tests.refiner.scenes import echo


@pytest.fixture
def refiner(test_encoder: None) -> MaskRefiner:
    """A refiner of random weights, which changes every mask."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_refiner("test", options=RefineOptions(num_iters=2)).eval()


@pytest.fixture
def echo_refiner(refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch) -> MaskRefiner:
    """A refiner that answers with what it is asked."""
    monkeypatch.setattr(refiner, "decode", echo)
    return refiner


@pytest.fixture
def asked(refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Prompts]]:
    """The prompts of every decoder pass, which echoes."""
    prompts: list[Prompts] = []

    def spy(image_embeddings: Tensor, asked_with: Prompts) -> MaskPrediction:
        prompts.append(asked_with)
        return echo(image_embeddings, asked_with)

    monkeypatch.setattr(refiner, "decode", spy)
    return prompts


@pytest.fixture
def encoded(refiner: MaskRefiner, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The batches that went into the encoder."""
    batches: list[Tensor] = []
    encode = refiner.encode_image

    def spy(images: Tensor) -> Tensor:
        batches.append(images)
        return encode(images)

    monkeypatch.setattr(refiner, "encode_image", spy)
    return batches
