"""Averages of refiners."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from phoenix_d2.refiner import MaskRefiner, RefineOptions
from phoenix_d2.sam.averaging import average_weights
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.sam.checkpoint import save_refiner, trained_state_dict
from phoenix_d2.sam.pretrained import load_pretrained
from tests.gates import gate_of

TOOL = Path(__file__).parents[2] / "tools" / "average_weights.py"
GATE = gate_of(0.1)


@pytest.fixture
def build(test_encoder: None) -> Callable[..., MaskRefiner]:
    def build_one(seed: int, **options: Any) -> MaskRefiner:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_refiner("test", **options)

    return build_one


def test_weights_are_averaged_and_the_rest_is_the_last_ones(build: Callable[..., MaskRefiner]) -> None:
    first, last = build(0), build(1, options=RefineOptions(num_iters=3))
    last.gate = GATE
    before = [{name: value.clone() for name, value in trained_state_dict(r).items()} for r in (first, last)]
    averaged = average_weights([first, last], [0.75, 0.25])
    assert averaged.options.num_iters == 3 and averaged.gate is None, "the gate knew other weights"
    for name, value in trained_state_dict(averaged).items():
        torch.testing.assert_close(value, 0.75 * before[0][name] + 0.25 * before[1][name])
    assert not trained_state_dict(first).keys() ^ before[1].keys()


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.6], [1.5, -0.5]])
def test_shares_that_are_none(build: Callable[..., MaskRefiner], shares: list[float]) -> None:
    with pytest.raises(ValueError, match="one each that add up to 1"):
        average_weights([build(0), build(1)], shares)


def test_refiners_that_differ(build: Callable[..., MaskRefiner]) -> None:
    other = build(0)
    del other.mask_decoder.iou_prediction_head
    with pytest.raises(ValueError, match="differ in their weights"):
        average_weights([other, build(1)], [0.5, 0.5])


def test_the_tool(build: Callable[..., MaskRefiner], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(TOOL))["main"]
    files = [tmp_path / f"{seed}.safetensors" for seed in (0, 1)]
    for seed, file in enumerate(files):
        save_refiner(build(seed), file, dtype=torch.float32)
    output = tmp_path / "mean.safetensors"
    main(["--weights", *map(str, files), "--output", str(output)])
    expected, found = average_weights([build(0), build(1)], [0.5, 0.5]), load_pretrained(output)
    torch.testing.assert_close(trained_state_dict(found), trained_state_dict(expected), atol=1e-3, rtol=1e-3)
    with pytest.raises(SystemExit, match="is also read"):
        main(["--weights", *map(str, files), "--output", str(files[1])])
    with pytest.raises(SystemExit, match="error: Shares"):
        main(["--weights", *map(str, files), "--shares", "1", "1/2", "--output", str(output)])
    with pytest.raises(SystemExit):
        main(["--weights", *map(str, files), "--output", str(tmp_path / "mean.pth")])
    assert "ends in .safetensors" in capsys.readouterr().err
