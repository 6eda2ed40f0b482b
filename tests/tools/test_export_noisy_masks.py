"""The tool that writes noisy masks to disk."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.sam.build import build_refiner


@pytest.fixture(scope="module")
def tool():
    path = Path(__file__).parents[2] / "tools" / "export_noisy_masks.py"
    spec = importlib.util.spec_from_file_location("export_noisy_masks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def arguments(test_encoder, drawn_folder, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        PhoenixRefiner(build_refiner("test")).save(tmp_path / "weights.safetensors")
    (tmp_path / "attack.yaml").write_text(
        "MODEL: {PHOENIX: {PERTURBATION: {NUM_EMBEDDINGS: 2, MAX_STEPS: 1, MAX_DECAYS: 1}, DATA: {MIN_AREA: 800}}}"
    )
    values = {
        "annotations": f"{drawn_folder}/instances.json",
        "images": f"{drawn_folder}/images",
        "output": tmp_path / "data",
        "name": "drawn",
        "weights": tmp_path / "weights.safetensors",
        "config": tmp_path / "attack.yaml",
    }
    return [text for key, value in values.items() for text in (f"--{key}", str(value))]


def test_a_killed_run_goes_on(tool, arguments, tmp_path, capsys, monkeypatch):
    from phoenix_d2.offline import export_noise

    export_image, seen = export_noise.export_image, []

    def die_at_the_third(refiner, task, **rest):
        seen.append(task.image_id)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return export_image(refiner, task, **rest)

    monkeypatch.setattr(export_noise, "export_image", die_at_the_third)
    with pytest.raises(SystemExit, match="--resume"):
        tool.main(arguments)
    assert not (tmp_path / "data/collection_hr.json").exists()
    with pytest.raises(SystemExit, match=r"error: .* 2 images that an earlier run finished"):
        tool.main(arguments)
    tool.main([*arguments, "--resume"])
    assert len(seen) == len(set(seen)) + 1
    entries = json.loads((tmp_path / "data/collection_hr.json").read_text())["drawn"]
    keys = ("filename", "maskname", "coarsename", "expandname")
    assert entries and all((tmp_path / "data" / entry[key]).is_file() for entry in entries for key in keys)
    assert f"{len(entries)} masks, IoU" in capsys.readouterr().out
    assert not list((tmp_path / "data").glob("*.partial"))
    for flags in ([], ["--resume"]):
        with pytest.raises(SystemExit, match=r"data.drawn exists: give another --name"):
            tool.main([*arguments, *flags])


def test_a_name_that_is_no_folder(tool, arguments):
    with pytest.raises(SystemExit):
        tool.main([*arguments, "--name", "../up"])
