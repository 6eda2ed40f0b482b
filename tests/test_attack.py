"""The decoder that attacks drive is the refiner's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from phoenix_d2.attack import attackable_decoder
from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.refiner import MaskRefiner
from phoenix_d2.sam.build import build_refiner


@pytest.fixture
def refiner(test_encoder: None) -> MaskRefiner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_refiner("test").eval()


@pytest.fixture
def embeddings(refiner: MaskRefiner) -> Tensor:
    images = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return refiner.encode_image(images)


@pytest.fixture
def coverage() -> Tensor:
    coverage = torch.zeros(3, 32, 32)
    for i, size in enumerate((6, 12, 20)):
        coverage[i, 4 : 4 + size, 5 : 5 + size] = 1.0
    return coverage


@pytest.mark.parametrize("dense_prompt", ["none", "target"])
def test_without_embeddings_it_decodes_the_targets_prompts(
    refiner: MaskRefiner, embeddings: Tensor, coverage: Tensor, dense_prompt: str
) -> None:
    decode = attackable_decoder(refiner, embeddings, coverage, dense_prompt=dense_prompt)
    prompts = refiner.prompter(coverage, stride=refiner.stride)
    if dense_prompt == "none":
        prompts = replace(prompts, mask_logits=None)
    active = torch.tensor([2, 0])
    with torch.no_grad():
        expected = refiner.decode(embeddings[active], prompts[active]).single().low_res_logits[:, 0]
    torch.testing.assert_close(decode(torch.zeros(2, 0, 256), active), expected)


def test_gradients_reach_the_embeddings_alone(
    refiner: MaskRefiner, embeddings: Tensor, coverage: Tensor, device: str
) -> None:
    refiner.to(device)
    decode = attackable_decoder(refiner, embeddings.to(device), coverage.to(device), dense_prompt="target")
    perturbation = torch.zeros(1, 4, 256, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad(decode(perturbation, torch.tensor([1], device=device)).sum(), perturbation)
    assert gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in refiner.parameters())


def test_boxes_grow_and_images_end_as_in_use(refiner: MaskRefiner, embeddings: Tensor, coverage: Tensor) -> None:
    refiner.prompter = CoarseMaskPrompter(box_growth=0.5, compat="samrefiner")
    valid = torch.ones_like(coverage, dtype=torch.bool)
    valid[:, 24:] = False
    asked, encode = [], refiner.prompt_encoder.encode
    refiner.prompt_encoder.encode = lambda prompts: asked.append(prompts) or encode(prompts)
    attackable_decoder(refiner, embeddings, coverage, valid=valid, dense_prompt="target")
    expected = refiner.derive_prompts(coverage, embeddings, valid)
    assert asked[0].point_coords.equal(expected.point_coords) and asked[0].mask_logits.equal(expected.mask_logits)


def test_unknown_dense_prompt(refiner: MaskRefiner, embeddings: Tensor, coverage: Tensor) -> None:
    with pytest.raises(ValueError, match=r"'both'.*'none' or 'target'"):
        attackable_decoder(refiner, embeddings, coverage, dense_prompt="both")
