"""Refiners by name."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from phoenix_d2.baselines import CLASSICAL, build_refiner
from phoenix_d2.baselines.grabcut import GrabCut
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.prompting import CoarseMaskPrompter
from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam.build import build_refiner as build_network


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    PhoenixRefiner(build_network("tiny", input_size=256, options=RefineOptions(num_iters=1, zoom_below=0.3))).save(path)
    return path


def test_classical_refiners_take_their_parameters():
    assert build_refiner("grabcut") == GrabCut() and build_refiner("grabcut", rim=0.2) == GrabCut(rim=0.2)


def test_samrefiner_is_the_same_network_asked_differently(weights):
    phoenix, samrefiner = (build_refiner(name, weights=weights) for name in ("phoenix", "samrefiner"))
    assert phoenix.options == RefineOptions(num_iters=1, zoom_below=0.3)
    assert phoenix.refiner.prompter == CoarseMaskPrompter()
    assert samrefiner.options == RefineOptions(num_iters=5, zoom_below=0.3, gate="off")
    assert samrefiner.refiner.prompter == CoarseMaskPrompter(compat="samrefiner")
    assert build_refiner("samrefiner", weights=weights, num_iters=2).options.num_iters == 2


def test_wrong_use_is_explained(weights):
    with pytest.raises(
        ValueError, match="Unknown refiner 'crf': expected one of phoenix, samrefiner, grabcut, morphology"
    ):
        build_refiner("crf")
    with pytest.raises(ValueError, match=r"'grabcut' takes no weights, got a\.pth: leave them out"):
        build_refiner("grabcut", weights="a.pth")
    with pytest.raises(ValueError, match="'samrefiner' has no weights of its own: name those of a pre-trained decoder"):
        build_refiner("samrefiner")
    with pytest.raises(ValueError, match="'morphology' has no option rim, size: it has kernel"):
        build_refiner("morphology", size=3, rim=1)
    with pytest.raises(ValueError, match="'phoenix' has no option rim: it has num_iters"):
        build_refiner("phoenix", weights=weights, rim=1)


@pytest.mark.parametrize("name", CLASSICAL)
def test_config_has_the_same_parameters(name):
    pytest.importorskip("detectron2")
    from phoenix_d2.config import get_phoenix_cfg

    node = get_phoenix_cfg().MODEL.REFINER[name.upper()]
    assert {key.lower(): value for key, value in node.items()} == asdict(CLASSICAL[name]())
