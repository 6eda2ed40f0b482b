"""The value objects."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from phoenix_d2.structures import (
    MaskPrediction,
    PointLabel,
    Prompts,
    RefinementResult,
)


def prompts(n: int = 3) -> Prompts:
    coords = torch.arange(n * 8, dtype=torch.float32).view(n, 4, 2)
    labels = torch.tensor([1, 0, 2, 3]).repeat(n, 1)
    return Prompts(coords, labels, torch.arange(n * 16, dtype=torch.float32).view(n, 1, 4, 4))


def prediction() -> MaskPrediction:
    logits = torch.arange(2 * 4 * 9, dtype=torch.float32).view(2, 4, 3, 3)
    iou = torch.tensor([[0.9, 0.1, 0.5, 0.2], [0.1, 0.2, 0.3, 0.8]])
    return MaskPrediction(logits, iou, torch.zeros(2, 5, 3, 3))


@pytest.mark.parametrize("index", [torch.tensor([2, 0]), torch.tensor([True, False, True]), slice(1, None)])
def test_prompts_are_indexed_mask_by_mask(index: torch.Tensor | slice) -> None:
    whole, part = prompts(), prompts()[index]
    assert len(whole) == 3 and len(part) == 2
    assert part.point_coords.equal(whole.point_coords[index])
    assert part.point_labels.equal(whole.point_labels[index])
    assert whole.mask_logits is not None and part.mask_logits is not None
    assert part.mask_logits.equal(whole.mask_logits[index])
    assert Prompts(whole.point_coords, whole.point_labels)[index].mask_logits is None


def test_without_points_pads_the_dropped_masks_alone() -> None:
    given = prompts()
    left = given.without_points(torch.tensor([False, True, False]))
    assert (left.point_labels[1] == PointLabel.PADDING).all()
    assert left.point_labels[[0, 2]].equal(given.point_labels[[0, 2]])
    assert left.mask_logits is given.mask_logits
    assert given.point_labels.equal(prompts().point_labels), "the original must not change"


@pytest.mark.parametrize(
    ("coords", "labels", "masks"),
    [
        (torch.zeros(2, 1, 3), torch.zeros(2, 1), None),
        (torch.zeros(2, 1, 2), torch.zeros(2, 2), None),
        (torch.zeros(2, 1, 2), torch.zeros(2, 1), torch.zeros(2, 4, 4)),
        (torch.zeros(2, 1, 2), torch.zeros(2, 1), torch.zeros(1, 1, 4, 4)),
    ],
)
def test_prompts_of_unequal_shapes_are_refused(
    coords: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor | None
) -> None:
    with pytest.raises(AssertionError):
        Prompts(coords, labels, masks)


def test_single_and_multimask_split_the_candidates() -> None:
    given = prediction()
    assert given.single().low_res_logits.equal(given.low_res_logits[:, :1])
    assert given.multimask().low_res_logits.equal(given.low_res_logits[:, 1:])
    assert given.multimask().iou_predictions.equal(given.iou_predictions[:, 1:])


def test_best_keeps_the_highest_predicted_iou_of_each_mask() -> None:
    given = prediction()
    best = given.best()
    assert best.iou_predictions[:, 0].tolist() == pytest.approx([0.9, 0.8])
    assert best.low_res_logits[:, 0].equal(given.low_res_logits[[0, 1], [0, 3]])
    assert given.multimask().best().iou_predictions[:, 0].tolist() == pytest.approx([0.5, 0.8])


def test_refinement_results_of_unequal_lengths_are_refused() -> None:
    n = torch.zeros(2)
    result = RefinementResult(
        masks=torch.zeros(2, 4, 5),
        iou_predictions=n,
        coarse_iou_predictions=n,
        low_res_logits=torch.zeros(2, 3, 3),
        status=n.long(),
        iou_trace=torch.zeros(2, 5),
        change_trace=torch.zeros(2, 5),
        evidence=torch.zeros(2, 4),
        predicted_gain=n,
    )
    assert len(result) == 2
    for name in ("status", "coarse_iou_predictions", "evidence", "predicted_gain"):
        with pytest.raises(AssertionError):
            dataclasses.replace(result, **{name: torch.zeros(3, *getattr(result, name).shape[1:])})


def test_refinement_results_of_single_masks() -> None:
    masks = torch.rand(3, 4, 5) > 0.5
    result = RefinementResult(
        masks=masks,
        iou_predictions=torch.rand(3),
        coarse_iou_predictions=torch.rand(3),
        low_res_logits=torch.zeros(3, 0, 0),
        status=torch.zeros(3).long(),
        iou_trace=torch.zeros(3, 2),
        change_trace=torch.zeros(3, 2),
        evidence=torch.zeros(3, 4),
        predicted_gain=torch.zeros(3),
    )
    assert [one.masks.equal(masks[i : i + 1]) and len(one) == 1 for i, one in enumerate(result)] == [True] * 3
    for last in (-1, np.int64(2), torch.tensor(2)):
        assert result[last].iou_predictions.equal(result.iou_predictions[2:])
    assert len(result[torch.tensor([True, False, True])]) == len(result[:2]) == 2
    with pytest.raises(IndexError, match="No mask 3 among 3"):
        result[3]
