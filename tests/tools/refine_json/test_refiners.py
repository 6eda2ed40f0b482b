"""Which refiner works: configs, weights, baselines."""

from __future__ import annotations

import json
import re

import pytest
from safetensors.torch import load_file, save_file

from phoenix_d2.sam.checkpoint import METADATA_KEY, read_metadata
from tests.tools.refine_json.runs import without


def test_options_of_a_config(case, reference, tmp_path):
    pytest.importorskip("detectron2")
    config = tmp_path / "config.yaml"
    config.write_text(
        "MODEL:\n  PHOENIX:\n    ENCODER:\n      NAME: tiny\n      INPUT_SIZE: 256\n  REFINER:\n    NUM_ITERS: 7\n"
    )
    case.run("MODEL.REFINER.NUM_ITERS", "1", config=config)
    assert case.output.read_bytes() == reference
    case.output.unlink()

    assert re.search(r"MODEL\.REFINER\.NUM_ITER 1: .*phoenix_d2/config\.py", case.error(
        "MODEL.REFINER.NUM_ITER", "1", config=config
    ))  # fmt: skip
    assert "No config 'phoenix_tiniest.yaml'" in case.error(config="phoenix_tiniest.yaml")
    config.write_text("MODEL:\n  REFINER:\n    NUM_ITER: 7\n")
    assert re.search(r"config\.yaml: .*MODEL\.REFINER\.NUM_ITER", case.error(config=config))
    assert not case.output.exists() and not case.journal.exists()


def test_weights_of_another_encoder(case, weights, tmp_path):
    def save_with(**changes):
        metadata = {METADATA_KEY: json.dumps(read_metadata(weights) | changes)}
        save_file(load_file(weights), tmp_path / "other.safetensors", metadata=metadata)
        return tmp_path / "other.safetensors"

    assert "other weights of the encoder 'tiny' (sha256 0000" in case.error(weights=save_with(encoder_sha256="0" * 64))
    assert "Unknown image encoder 'large'" in case.error(weights=save_with(encoder="large"))
    assert not case.output.exists() and not case.journal.exists()


def test_weights_that_are_none(case, tmp_path):
    assert "No weights 'absent': expected a file, one of the weights that come with" in case.error(weights="absent")
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    assert "cut.safetensors cannot be read as weights" in case.error(weights=tmp_path / "cut.safetensors")


def test_a_baseline_takes_its_place(case, results, reference):
    refined = case.run("--refiner", "morphology", weights=None)
    assert without(refined, "segmentation") == without(results, "segmentation")
    assert sum(new["segmentation"] != old["segmentation"] for new, old in zip(refined, results, strict=True)) > 1
    first = case.output.read_bytes()
    case.run("--refiner", "samrefiner", "--num-iters", "1")
    assert case.output.read_bytes() not in (first, reference)


def test_a_config_names_refiner_and_parameters(case, tmp_path):
    pytest.importorskip("detectron2")
    config = tmp_path / "config.yaml"
    config.write_text("MODEL:\n  REFINER:\n    NAME: morphology\n    MORPHOLOGY:\n      KERNEL: 0.3\n")
    by_config = case.run(config=config, weights=None)
    assert by_config != case.run("--refiner", "morphology", weights=None)
    assert by_config == case.run("MODEL.REFINER.MORPHOLOGY.KERNEL", "0.3", config="phoenix_tiny.yaml",
                                 weights=None, refiner="morphology")  # fmt: skip
    assert "kernel 2.0 is a share" in case.error("MODEL.REFINER.MORPHOLOGY.KERNEL", "2.0", config=config, weights=None)


def test_wrong_baselines_are_explained(case, weights):
    assert "Unknown refiner 'crf': expected one of phoenix, samrefiner" in case.error("--refiner", "crf")
    message = case.error("--refiner", "grabcut", "--num-iters", "2", "--gate", "off", weights=weights)
    assert "'grabcut' has no network: omit --weights and --num-iters and --gate" in message
    assert not case.output.exists() and not case.journal.exists()
