"""AdamW over what is trained, and clipping over all of it together."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from phoenix_d2.engine.optimizer import build_clipper, build_optimizer

CLIP = 0.1


@pytest.fixture
def model():
    """Two layers and a frozen third, with gradients of very different size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    for index, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        parameter.grad = torch.randn_like(parameter) * 10**index
    return model


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def total_norm(model):
    return torch.stack([p.grad.norm() for p in trained(model)]).norm()


def test_clipping_is_torchs_over_all_parameters(cfg, model):
    expected = copy.deepcopy(model)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        theirs.grad = None if ours.grad is None else ours.grad.clone()
    norm = nn.utils.clip_grad_norm_(trained(expected), CLIP)
    assert build_clipper(cfg, model)() == norm
    for ours, theirs in zip(trained(model), trained(expected), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert total_norm(model).item() == pytest.approx(CLIP, rel=1e-4)


def test_small_gradients_are_not_touched(cfg, model):
    for parameter in trained(model):
        parameter.grad.mul_(1e-6)
    before = [p.grad.clone() for p in trained(model)]
    build_clipper(cfg, model)()
    assert all(torch.equal(p.grad, b) for p, b in zip(trained(model), before, strict=True))


def test_detectron2s_norm_clips_each_parameter_by_itself(cfg, model):
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    assert build_clipper(cfg, model) is None
    before = [p.grad.norm() for p in trained(model)]
    assert min(before) > CLIP
    build_optimizer(cfg, model).step()
    for parameter in trained(model):
        assert parameter.grad.norm().item() == pytest.approx(CLIP, rel=1e-4)
    assert total_norm(model).item() == pytest.approx(2 * CLIP, rel=1e-4)


def test_no_clipping_when_it_is_off(cfg, model):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    before = total_norm(model)
    assert build_clipper(cfg, model) is None
    build_optimizer(cfg, model).step()
    assert total_norm(model) == before


def test_adamw_over_what_requires_gradients(cfg, model):
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in trained(model)}
    for group in optimizer.param_groups:
        assert group["betas"] == (0.9, 0.999)
        assert (group["lr"], group["weight_decay"]) == (1e-4, 5e-4)
