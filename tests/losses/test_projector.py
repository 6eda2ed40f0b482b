"""The projector of CMRL."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import nn

from phoenix_d2.losses.projector import Projector


def test_three_layers_by_default():
    assert [type(layer) for layer in Projector()] == [
        nn.Conv2d,
        LayerNorm2d,
        nn.GELU,
        nn.Conv2d,
        LayerNorm2d,
        nn.GELU,
        nn.Conv2d,
    ]


def test_no_layer_is_the_identity():
    features = torch.rand(2, 5, 3, 3)
    projector = Projector(5, num_layers=0)
    assert projector(features) is features
    assert not list(projector.parameters())


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_keeps_the_shape_and_mixes_no_pixels(num_layers):
    projector = Projector(5, num_layers=num_layers)
    features = torch.rand(2, 5, 3, 4)
    other = features.clone()
    other[..., 0] += 1
    assert sum(isinstance(layer, nn.Conv2d) for layer in projector) == num_layers
    assert projector(features).shape == features.shape
    changed = (projector(other) - projector(features)).abs().amax(dim=(0, 1, 2)) > 1e-6
    assert changed.tolist() == [True, False, False, False]


def test_negative_number_of_layers():
    with pytest.raises(ValueError, match="-1 layers"):
        Projector(num_layers=-1)
