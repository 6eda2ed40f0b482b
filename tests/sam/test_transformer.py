"""The transformer with fused attention against segment-anything's own."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import TwoWayTransformer as SamTwoWayTransformer
from torch import Tensor

from phoenix_d2.sam.transformer import TwoWayTransformer

N, DIM, HEIGHT, WIDTH = 3, 32, 6, 7


@pytest.fixture
def transformers() -> tuple[TwoWayTransformer, SamTwoWayTransformer]:
    """Ours and segment-anything's, of the same random weights."""
    theirs = SamTwoWayTransformer(depth=2, embedding_dim=DIM, num_heads=4, mlp_dim=64)
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    ours = TwoWayTransformer(depth=2, embedding_dim=DIM, num_heads=4, mlp_dim=64)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def inputs(num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (N, DIM, HEIGHT, WIDTH), (1, DIM, HEIGHT, WIDTH), (N, num_tokens, DIM)
    embedding, pe, tokens = (torch.randn(shape, generator=generator) for shape in shapes)
    return embedding.requires_grad_(), pe.expand(N, -1, -1, -1), tokens.requires_grad_()


@pytest.mark.parametrize("num_tokens", [1, 9, 59])
def test_same_answers_and_gradients(
    transformers: tuple[TwoWayTransformer, SamTwoWayTransformer], num_tokens: int
) -> None:
    # rounding errors of gradients grow with what they are sums of
    given = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs(num_tokens)]
    answers, gradients = [], []
    for transformer in transformers:
        transformer.double()
        tokens, pixels = transformer(*given)
        answers.append((tokens, pixels))
        wanted = [given[0], given[2], *transformer.parameters()]
        gradients.append(torch.autograd.grad(tokens.square().sum() + pixels.pow(3).sum(), wanted))
    torch.testing.assert_close(*answers, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(*gradients, atol=1e-8, rtol=1e-8)


def test_of_no_mask_pytorchs_attention_is_not_asked(
    transformers: tuple[TwoWayTransformer, SamTwoWayTransformer], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """It crashes on some GPUs; and what is trained gets a gradient all the same."""
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", None)
    ours = transformers[0].to(device)
    embedding, pe, tokens = (x[:0].to(device) for x in inputs(5))
    answers = ours(embedding, pe[:1].new_zeros(1, DIM, HEIGHT, WIDTH), tokens)
    assert [x.shape for x in answers] == [(0, 5, DIM), (0, HEIGHT * WIDTH, DIM)]
    sum(x.sum() for x in answers).backward()
    assert all(p.grad is not None and not p.grad.any() for p in ours.parameters())


def test_every_mask_by_itself(transformers: tuple[TwoWayTransformer, SamTwoWayTransformer]) -> None:
    ours, _ = transformers
    embedding, pe, tokens = inputs(5)
    together = ours(embedding, pe, tokens)
    alone = ours(embedding[1:2], pe[1:2], tokens[1:2])
    torch.testing.assert_close([x[1:2] for x in together], list(alone), atol=1e-5, rtol=1e-5)
