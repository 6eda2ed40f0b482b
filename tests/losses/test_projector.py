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
    pixels = torch.rand(6, 5)
    projector = Projector(5, num_layers=0)
    assert projector(pixels) is pixels
    assert not list(projector.parameters())


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_is_its_layers_on_every_pixel(num_layers):
    projector = Projector(5, num_layers=num_layers)
    maps = torch.rand(2, 5, 3, 4)
    expected = maps
    for layer in projector:
        expected = layer(expected)
    assert sum(isinstance(layer, nn.Conv2d) for layer in projector) == num_layers
    torch.testing.assert_close(projector(maps.movedim(1, -1)), expected.movedim(1, -1))


def test_negative_number_of_layers():
    with pytest.raises(ValueError, match="-1 layers"):
        Projector(num_layers=-1)
