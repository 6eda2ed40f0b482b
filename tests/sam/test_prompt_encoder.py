"""The prompt encoder against segment-anything's own."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import PromptEncoder as SamPromptEncoder
from torch import Tensor

from phoenix_d2.sam.prompt_encoder import PromptEncoder
from phoenix_d2.structures import PointLabel, Prompts


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PromptEncoder(embed_dim=16, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=8)


@pytest.fixture(scope="module")
def parent(encoder: PromptEncoder) -> SamPromptEncoder:
    parent = SamPromptEncoder(16, (4, 4), (64, 64), 8)
    parent.load_state_dict(encoder.state_dict(), strict=True)
    return parent


COORDS = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0)) * 64
LABELS = torch.tensor([[1, 0], [0, 0], [1, -1]])
BOXES = torch.tensor([[1.0, 2.0, 30.0, 40.0], [0.0, 0.0, 63.0, 63.0], [5.5, 6.5, 7.5, 60.0]])
CORNERS = torch.tensor([[2, 3]]).expand(3, 2)
MASKS = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-6, rtol=1e-6)


def test_points_are_the_parents(encoder: PromptEncoder, parent: SamPromptEncoder) -> None:
    prompts = Prompts(
        torch.cat([COORDS, torch.full((3, 1, 2), 99.0)], 1), torch.cat([LABELS, torch.full((3, 1), -1)], 1)
    )
    same(encoder.encode(prompts), parent((COORDS, LABELS), None, None))


def test_boxes_are_the_parents(encoder: PromptEncoder, parent: SamPromptEncoder) -> None:
    same(encoder.encode(Prompts(BOXES.view(3, 2, 2), CORNERS)), parent(None, BOXES, None))


def test_points_with_boxes_and_masks_are_the_parents(encoder: PromptEncoder, parent: SamPromptEncoder) -> None:
    prompts = Prompts(torch.cat([COORDS, BOXES.view(3, 2, 2)], 1), torch.cat([LABELS, CORNERS], 1), MASKS)
    same(encoder.encode(prompts), parent((COORDS, LABELS), BOXES, MASKS))


def test_each_label_has_an_embedding_of_its_own(encoder: PromptEncoder) -> None:
    labels = torch.tensor([[int(label) for label in PointLabel]])
    sparse, _ = encoder.encode(Prompts(torch.full((1, 5, 2), 20.0), labels))
    assert torch.cdist(sparse[0], sparse[0]).fill_diagonal_(1).min() > 1e-3


def test_padding_has_no_place(encoder: PromptEncoder) -> None:
    labels = torch.full((3, 2), int(PointLabel.PADDING))
    here, _ = encoder.encode(Prompts(COORDS, labels))
    there, _ = encoder.encode(Prompts(COORDS + 17, labels))
    assert here.equal(there)
    assert here.equal(encoder.not_a_point_embed.weight.expand_as(here))


def test_dropping_points_of_one_mask_leaves_the_others(encoder: PromptEncoder) -> None:
    prompts = Prompts(COORDS, LABELS)
    before, _ = encoder.encode(prompts)
    after, _ = encoder.encode(prompts.without_points(torch.tensor([True, False, False])))
    assert after[1:].equal(before[1:])
    assert after[0].equal(encoder.not_a_point_embed.weight.expand(2, -1))


def test_prompts_may_have_no_points(encoder: PromptEncoder) -> None:
    sparse, dense = encoder.encode(Prompts(torch.zeros(3, 0, 2), torch.zeros(3, 0, dtype=torch.long), MASKS))
    assert sparse.shape == (3, 0, 16) and dense.shape == (3, 16, 4, 4)


def test_absent_masks_share_the_memory_of_one_embedding(encoder: PromptEncoder) -> None:
    dense = encoder.no_mask_embeddings(1000)
    assert dense.shape == (1000, 16, 4, 4)
    assert dense.untyped_storage().nbytes() == 16 * 4
