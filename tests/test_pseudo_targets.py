"""Targets that a decoder finds from a grid of points, on a decoder whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from phoenix_d2.ops.frames import Frame
from phoenix_d2.pseudo_targets import PointGridTeacher
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.structures import MaskPrediction

SIZE = 32


class Answers(nn.Module):
    """Gives each point three masks: the rows up to it, nothing, and everything; predicted IoU 0.9, 0.95 and 0.8."""

    def decode(self, image_embeddings, image_pe, sparse, dense):
        count = len(sparse)
        logits = -torch.ones(count, 4, SIZE, SIZE)
        for i in range(count):
            logits[i, 1, : 4 * (i % 4) + 4] = 1
        logits[:, 3] = 1
        return MaskPrediction(
            logits, torch.tensor([0.99, 0.9, 0.95, 0.8]).expand(count, 4), torch.zeros(count, 1, 1, 1)
        )


@pytest.fixture(scope="module")
def network(test_encoder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_refiner("test").eval()


@pytest.fixture
def teacher(network):
    teacher = PointGridTeacher(network, num_targets=100)
    teacher.mask_decoder = Answers()
    return teacher


@pytest.fixture
def frame(network):
    return Frame.whole((96, 128), input_size=network.input_size, low_res_size=network.low_res_size)


def find(teacher, network, frame, seed=0):
    embedding = torch.zeros(1, 256, network.input_size // 16, network.input_size // 16)
    return teacher(embedding, frame, generator=torch.Generator().manual_seed(seed))


def test_points_lie_in_the_middle_of_equal_cells_of_the_image(teacher, frame):
    points = teacher._grid(frame)
    assert len(points) == 16
    # 96 x 128 pixels fill 96 rows of the 128 x 128 input
    assert points[:, 0].unique().tolist() == [16, 48, 80, 112]
    assert points[:, 1].unique().tolist() == [12, 36, 60, 84]


def test_confident_answers_with_an_outline_are_targets(teacher, network, frame):
    masks = find(teacher, network, frame)
    # the single-mask answer, the empty and the full ones are none
    assert masks.shape == (16, SIZE, SIZE) and masks.dtype == torch.bool
    assert sorted(masks.flatten(1).sum(1).unique().tolist()) == [4 * SIZE, 8 * SIZE, 12 * SIZE, 16 * SIZE]


def test_targets_do_not_reach_into_the_padding(teacher, network, frame):
    teacher.min_iou = 0.0
    assert not find(teacher, network, frame)[:, 24:].any()


@pytest.mark.parametrize(("min_iou", "count"), [(0.9, 16), (0.91, 0)])
def test_unsure_answers_are_left_out(teacher, network, frame, min_iou, count):
    teacher.min_iou = min_iou - 1e-6
    assert len(find(teacher, network, frame)) == count


def test_the_draw_depends_on_the_generator_alone(teacher, network, frame):
    teacher.num_targets = 1
    drawn = [find(teacher, network, frame, seed).sum().item() for seed in (0, 0, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1


def test_the_teacher_is_a_frozen_copy(network):
    teacher = PointGridTeacher(network)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(
        a is not b for a, b in zip(teacher.mask_decoder.parameters(), network.mask_decoder.parameters(), strict=True)
    )
    state, own = network.state_dict(), teacher.state_dict()
    assert own and all(torch.equal(value, state[key]) for key, value in own.items())


def test_it_runs_on_a_real_decoder(network, frame):
    masks, iou = PointGridTeacher(network, grid_size=2).answers(torch.zeros(1, 256, 8, 8), frame)
    assert masks.shape == (12, SIZE, SIZE) and iou.shape == (12,)


@pytest.mark.parametrize("changes", [{"grid_size": 0}, {"num_targets": 0}, {"min_iou": 1.5}])
def test_values_out_of_range(network, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        PointGridTeacher(network, **changes)
