"""The command lines of tools/refine_semantic.py and tools/evaluate_semantic.py, on noise and random weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from phoenix_d2.data.label_maps import read_label_map, write_label_map
from phoenix_d2.data.mask_json import encode_mask
from phoenix_d2.offline import label_maps
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam.build import build_refiner

SIZE = (48, 64)
NAMES = ("a", "city/b", "c")


def load_tool(name):
    path = Path(__file__).parents[2] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


refine, evaluate = load_tool("refine_semantic"), load_tool("evaluate_semantic")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    PhoenixRefiner(build_refiner("tiny", input_size=64, options=RefineOptions(num_iters=1))).save(path)
    return path


@pytest.fixture
def data(tmp_path):
    """Three images, and label maps of background, a class and void."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        labels = np.zeros(SIZE, np.uint8)
        labels[10:30, 10:40], labels[:, -3:] = 2, 255
        write_label_map(tmp_path / "labels" / f"{name}.png", labels)
        path = tmp_path / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(path)
    return tmp_path


def arguments(data, weights, *more, source="labels", output="refined"):
    paths = {"--images": data / "images", "--input": data / source, "--output": data / output, "--weights": weights}
    return [str(part) for pair in paths.items() for part in pair] + ["--background", "0", *more]


def refined_maps(data, output="refined"):
    return {
        str(path.relative_to(data / output)): read_label_map(path).tolist() for path in (data / output).rglob("*.png")
    }


def test_folder_in_folder_out(data, weights, capsys):
    refine.main(arguments(data, weights))
    assert "3 label maps of 3 parts (3 refined)" in capsys.readouterr().out
    refined, before = refined_maps(data), refined_maps(data, "labels")
    assert refined.keys() == before.keys() and refined != before
    for name, labels in refined.items():
        assert set(np.unique(labels)) <= {0, 2, 255}
        assert ((np.array(labels) == 255) == (np.array(before[name]) == 255)).all()
    assert sorted(path.name for path in data.iterdir()) == ["images", "labels", "refined"]


def test_a_file_of_the_evaluator_gives_the_same(data, weights):
    refine.main(arguments(data, weights))
    records = [
        {"file_name": f"somewhere/{name}.jpg", "category_id": label, "segmentation": encode_mask(labels == label)}
        for name in ("a", "c")
        for labels in [read_label_map(data / "labels" / f"{name}.png")]
        for label in (0, 2)
    ]
    (data / "predictions.json").write_text(json.dumps(records))
    refine.main(arguments(data, weights, source="predictions.json", output="of_file"))
    of_file, of_folder = refined_maps(data, "of_file"), refined_maps(data)
    assert of_file == {name: of_folder[name] for name in ("a.png", "c.png")}


def test_a_killed_run_goes_on(data, weights, monkeypatch, capsys):
    refine.main(arguments(data, weights, output="whole"))
    write, written = label_maps.write_label_map, []

    def stop_at_the_second(path, *args, **kwargs):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *args, **kwargs)

    monkeypatch.setattr(label_maps, "write_label_map", stop_at_the_second)
    with pytest.raises(SystemExit, match="interrupted"):
        refine.main(arguments(data, weights))
    monkeypatch.setattr(label_maps, "write_label_map", write)
    time = written[0].stat().st_mtime_ns
    for wrong, reason in (
        ([], "holds 1 images .* --resume"),
        (["--resume", "--num-iters", "2"], "other options"),
        (["--resume", "--void", "7"], "other void"),
    ):
        with pytest.raises(SystemExit, match=rf"error: .*refined\.partial .*{reason}"):
            refine.main(arguments(data, weights, *wrong))
    capsys.readouterr()
    refine.main(arguments(data, weights, "--resume"))
    assert "3 label maps of 3 parts" in capsys.readouterr().out
    assert refined_maps(data) == refined_maps(data, "whole") and not (data / "refined.partial").exists()
    assert (data / "refined" / written[0].name).stat().st_mtime_ns == time, "not refined again"


@pytest.mark.slow
def test_two_workers_write_the_same(data, weights, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    for output, workers in (("one", 1), ("two", 2)):
        refine.main(arguments(data, weights, "--num-workers", str(workers), output=output))
    assert refined_maps(data, "one") == refined_maps(data, "two")
    assert capsys.readouterr().out.count("3 label maps of 3 parts") == 2


def test_an_image_that_is_cut_short_leaves_its_labels(data, weights, capsys):
    path = data / "images" / "a.jpg"
    path.write_bytes(path.read_bytes()[:-500])
    refine.main(arguments(data, weights))
    assert "labels kept" in capsys.readouterr().out
    assert refined_maps(data)["a.png"] == refined_maps(data, "labels")["a.png"]


def test_bad_input_is_refused_before_anything_is_written(data, weights):
    def fails(message, *more, **paths):
        with pytest.raises(SystemExit, match=message):
            refine.main(arguments(data, weights, *more, **paths))
        assert not list(data.glob("refined*"))

    fails("holds no label maps", source="images")
    fails("labels exists", output="labels")
    fails("GrabCut has no logits", "--refiner", "grabcut", "--weights", "")
    write_label_map(data / "labels" / "city" / "b.png", np.zeros((9, 9), np.uint8))
    fails("9 x 9 .*48 x 64")
    (data / "images" / "a.jpg").rename(data / "images" / "z.jpg")
    fails(r"1 problem.*\n.*a\.png has no images")


def test_evaluate(data, capsys):
    labels = read_label_map(data / "labels" / "a.png")
    shifted = np.where(labels == 255, 0, np.roll(labels, 5, axis=1))
    for name in ("a", "c"):
        write_label_map(data / "shifted" / f"{name}.png", np.where(shifted == 255, 0, shifted))
    paths = ["--truth", str(data / "labels"), "--results", str(data / "labels"), str(data / "shifted")]
    with pytest.raises(SystemExit, match=r"shifted lacks 1 of the label maps.*city/b\.png.*--subset"):
        evaluate.main(paths)
    evaluate.main([*paths, "--subset", "--classes"])
    out = capsys.readouterr().out
    assert out.startswith("2 images") and out.count("100.0") == 5
    # 25 of 35 columns of class 2, in 20 rows; the rest of 48 x 61 pixels is class 0
    assert f"{100 * 25 / 35:.1f}" in out and f"{100 * (1 - 200 / (48 * 61)):.1f}" in out
    with pytest.raises(SystemExit, match="no PNG in common"):
        evaluate.main(["--truth", str(data / "labels"), "--results", str(data / "images"), "--subset"])
