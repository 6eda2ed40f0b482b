"""The command line of tools/refine_json.py, on a drawn dataset and a tiny refiner with random weights."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from phoenix_d2.data.datasets.drawn import draw_dataset
from phoenix_d2.data.mask_json import decode_segmentation, encode_mask
from phoenix_d2.offline import refine
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam.build import build_refiner
from phoenix_d2.sam.checkpoint import METADATA_KEY, read_metadata

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "refine_json.py"
SIZE = (96, 128)
NUM_IMAGES = 6
# runs the tool where imports of some modules, named first, fail
LAUNCHER = """
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def load_tool():
    spec = importlib.util.spec_from_file_location("refine_json", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL_MODULE = load_tool()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    # the last bits of sums depend on the number of threads, which workers share
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    PhoenixRefiner(build_refiner("tiny", input_size=256, options=RefineOptions(num_iters=1))).save(path)
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("drawn") / "set", num_images=NUM_IMAGES, image_size=SIZE)


@pytest.fixture(scope="module")
def results(drawn):
    """Predictions of the drawn objects, image after image in turn."""
    annotations = json.loads(drawn.annotation_file.read_text())["annotations"]
    ordered = sorted(annotations, key=lambda annotation: (annotation["id"] % 3, annotation["id"]))
    keys = ("image_id", "category_id", "bbox", "segmentation")
    return [
        {**{key: a[key] for key in keys}, "score": 1 / (2 + i), "gt_id": a["id"], "note": {"of": i}}
        for i, a in enumerate(ordered)
    ]


@pytest.fixture
def case(tmp_path, drawn, results, weights):
    """Files of one run; `run` calls the tool in this process, `command` is for another."""
    source, output = tmp_path / "coarse.json", tmp_path / "refined.json"
    source.write_text(json.dumps(results))

    def command(*more, **changes):
        options = {
            "--images": drawn.image_folder,
            "--input": source,
            "--annotations": drawn.annotation_file,
            "--output": output,
            "--weights": weights,
            **{f"--{key}": value for key, value in changes.items()},
        }
        pairs = [str(part) for key, value in options.items() if value is not None for part in (key, value)]
        return [*pairs, *map(str, more)]

    def run(*more, **changes):
        TOOL_MODULE.main(command(*more, **changes))
        return json.loads(output.read_text())

    def error(*more, **changes):
        with pytest.raises(SystemExit) as stop:
            TOOL_MODULE.main(command(*more, **changes))
        return str(stop.value)

    def start(*more, launcher=(), **changes):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, *launcher, str(TOOL), *command(*more, **changes)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    journal = tmp_path / "refined.json.partial"
    return SimpleNamespace(
        source=source, output=output, journal=journal, run=run, error=error, start=start, command=command
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory, drawn, results, weights):
    """The bytes of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("reference")
    (folder / "coarse.json").write_text(json.dumps(results))
    TOOL_MODULE.main(
        ["--images", str(drawn.image_folder), "--input", str(folder / "coarse.json"), "--weights", str(weights),
         "--annotations", str(drawn.annotation_file), "--output", str(folder / "refined.json")]
    )  # fmt: skip
    return (folder / "refined.json").read_bytes()


def without(records, *keys):
    return [{key: value for key, value in record.items() if key not in keys} for record in records]


def stop_after(monkeypatch, num_images):
    """Let refinement fail after some images; returns the ids of the images that were asked for."""
    seen, original = [], refine.refine_image

    def refine_image(refiner, task, **options):
        seen.append(task.image_id)
        if len(seen) > num_images:
            raise RuntimeError("out of memory")
        return original(refiner, task, **options)

    monkeypatch.setattr(refine, "refine_image", refine_image)
    return seen


def test_only_segmentations_change(case, results, capsys):
    refined = case.run()
    assert without(refined, "segmentation") == without(results, "segmentation")
    changed = sum(new["segmentation"] != old["segmentation"] for new, old in zip(refined, results, strict=True))
    assert changed > len(results) / 2
    assert all(decode_segmentation(record["segmentation"], *SIZE).any() for record in refined)
    output = capsys.readouterr().out
    assert f"{len(results)} masks in {NUM_IMAGES} images: " in output and " ms a mask" in output
    assert f"written to {case.output}" in output
    assert sorted(path.name for path in case.output.parent.iterdir()) == ["coarse.json", "refined.json"]


def test_each_image_is_encoded_once(case, monkeypatch):
    encoded, original = [], TOOL_MODULE.load_refiner

    def load_refiner(args, device):
        refiner = original(args, device)
        refiner.refiner.image_encoder.register_forward_hook(lambda *_: encoded.append(1))
        return refiner

    monkeypatch.setattr(TOOL_MODULE, "load_refiner", load_refiner)
    case.run()
    assert len(encoded) == NUM_IMAGES


def test_a_cache_of_embeddings_saves_the_encoder_and_changes_no_byte(case, tmp_path, monkeypatch):
    encoded, original = [], TOOL_MODULE.load_refiner

    def load_refiner(args, device):
        refiner = original(args, device)
        refiner.refiner.image_encoder.register_forward_hook(lambda *_: encoded.append(1))
        return refiner

    monkeypatch.setattr(TOOL_MODULE, "load_refiner", load_refiner)
    outputs = []
    for _ in range(2):
        case.run("--embedding-cache", tmp_path / "cache")
        outputs.append(case.output.read_bytes())
        assert len(encoded) == NUM_IMAGES
    assert outputs[0] == outputs[1]


def test_a_cache_that_cannot_be_is_an_error_before_any_work(case, tmp_path):
    assert "is a file: name a folder" in case.error("--embedding-cache", case.source)
    limit = ("--embedding-cache", tmp_path / "cache", "--embedding-cache-gb", "0")
    assert "An embedding cache of 0.0 GB: expected a positive number" in case.error(*limit)
    classical = ("--refiner", "morphology", "--embedding-cache", tmp_path / "cache")
    assert "has no network: omit --embedding-cache" in case.error(*classical, weights=None)
    assert not (tmp_path / "cache").exists() and not case.journal.exists()


def test_boxes_follow_if_asked(case, results, reference):
    refined = case.run("--update-boxes")
    assert without(refined, "bbox") == without(json.loads(reference), "bbox")
    for record in refined:
        mask = decode_segmentation(record["segmentation"], *SIZE)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y = columns[0], rows[0]
        assert record["bbox"] == [x, y, columns[-1] + 1 - x, rows[-1] + 1 - y]
    assert any(new["bbox"] != old["bbox"] for new, old in zip(refined, results, strict=True))


def test_annotations_of_every_form(case, drawn, capsys):
    data = json.loads(drawn.annotation_file.read_text())
    data["annotations"] = records = data["annotations"][:6]
    shape = np.zeros(SIZE, bool)
    shape[20:70, 30:90] = True
    records[1]["segmentation"] = [[30.5, 20.25, 90, 20, 90, 70, 30, 70]]
    records[2]["segmentation"] = {"size": list(SIZE), "counts": [0, SIZE[0] * SIZE[1]]}
    records[3]["segmentation"] = encode_mask(np.zeros(SIZE, bool))
    records[4] |= {"segmentation": encode_mask(shape), "iscrowd": 1}
    case.source.write_text(json.dumps(data))
    refined = case.run("--update-boxes", annotations=None)

    assert list(refined) == list(data)
    assert without([refined], "annotations") == without([data], "annotations")
    keys = ("segmentation", "bbox", "area")
    assert without(refined["annotations"], *keys) == without(records, *keys)
    assert [list(new) for new in refined["annotations"]] == [list(old) for old in records]
    # empty and crowd
    assert refined["annotations"][3:5] == records[3:5]
    for new in (refined["annotations"][i] for i in (0, 1, 5)):
        mask = decode_segmentation(new["segmentation"], *SIZE)
        assert isinstance(new["segmentation"]["counts"], str) and new["area"] == mask.sum()
    assert re.search(r"6 masks in \d images: 4 refined, 2 kept \(1 empty, 1 crowd\)", capsys.readouterr().out)


def test_a_failure_keeps_the_old_output_and_what_was_finished(case, reference, monkeypatch, capsys):
    case.output.write_text("old")
    with monkeypatch.context() as context:
        stop_after(context, 2)
        with pytest.raises(RuntimeError, match="out of memory"):
            case.run()
    assert case.output.read_text() == "old"
    assert f"{case.journal}: go on with --resume" in capsys.readouterr().err

    assert "holds 2 images" in case.error() and "--resume" in case.error()
    assert "other update_boxes: repeat" in case.error("--resume", "--update-boxes")
    assert "other options: repeat" in case.error("--resume", "--num-iters", "2")
    assert case.output.read_text() == "old"

    asked = stop_after(monkeypatch, NUM_IMAGES)
    case.run("--resume")
    assert len(asked) == NUM_IMAGES - 2
    assert case.output.read_bytes() == reference
    assert not case.journal.exists()


def test_resume_without_anything_to_resume_starts(case, reference):
    case.run("--resume")
    assert case.output.read_bytes() == reference


def test_a_killed_run_goes_on_and_needs_no_detectron2(case, reference):
    process = case.start()
    deadline = time.monotonic() + 120
    # the first line tells what the run depends on
    while not any(file.read_bytes().count(b"\n") > 1 for file in case.journal.glob("*.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not case.output.exists() and case.journal.exists()

    resumed = case.start("--resume", launcher=("-c", LAUNCHER, "detectron2"))
    _, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors
    assert case.output.read_bytes() == reference


@pytest.mark.slow
def test_two_workers_write_the_same_file_without_detectron2(case, reference, results):
    process = case.start("--num-workers", "2", launcher=("-c", LAUNCHER, "detectron2"))
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert case.output.read_bytes() == reference
    assert f"{len(results)} masks in {NUM_IMAGES} images: " in output


def test_shards_write_the_same_file_with_a_last_run_that_merges(case, reference, monkeypatch, capsys):
    asked = stop_after(monkeypatch, NUM_IMAGES)
    for k in (2, 1):
        TOOL_MODULE.main(case.command("--shard", f"{k}/2"))
        assert not case.output.exists()
    output = capsys.readouterr().out
    assert f"3 of {NUM_IMAGES} images are finished" in output and f"{NUM_IMAGES} of {NUM_IMAGES}" in output
    assert f"holds {NUM_IMAGES} images" in case.error()
    assert "holds 3 images" in case.error("--shard", "1/2")
    assert "other options: repeat" in case.error("--shard", "1/3", "--num-iters", "2")
    case.run("--resume")
    assert len(asked) == NUM_IMAGES
    assert case.output.read_bytes() == reference and not case.journal.exists()


def test_the_last_run_makes_up_for_a_shard_that_is_missing(case, reference):
    TOOL_MODULE.main(case.command("--shard", "1/3"))
    case.run("--resume")
    assert case.output.read_bytes() == reference


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
    assert "No weights 'absent'" in case.error(weights="absent")
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


def test_a_baseline_cannot_go_on_with_another(case, monkeypatch):
    with monkeypatch.context() as context:
        stop_after(context, 2)
        with pytest.raises(RuntimeError, match="out of memory"):
            case.run("--refiner", "grabcut", weights=None)
    assert "other refiner, parameters: repeat" in case.error("--refiner", "morphology", "--resume", weights=None)
    assert re.search(r"other refiner, .*weights.*: repeat", case.error("--resume"))


def test_wrong_baselines_are_explained(case, weights):
    assert "Unknown refiner 'crf': expected one of phoenix, samrefiner" in case.error("--refiner", "crf")
    message = case.error("--refiner", "grabcut", "--num-iters", "2", "--gate", "off", weights=weights)
    assert "'grabcut' has no network: omit --weights and --num-iters and --gate" in message
    assert "'samrefiner' has no weights of its own" in case.error("--refiner", "samrefiner", weights=None)
    assert not case.output.exists() and not case.journal.exists()


def other_size(image_size):
    return encode_mask(np.ones(image_size, bool))


BAD_RESULTS = {
    "unknown image": ({"image_id": 99}, r"result 1 .*\(image 99\): no such image .* Use the annotation file"),
    "NaN score": ({"score": float("nan")}, r"result 1 .*: score must be a finite number, found nan"),
    "size": (
        {"segmentation": other_size((5, 6))},
        r"result 1 .*the mask is 5 x 6 .* image is 96 x 128\. Resize the mask",
    ),
    "RLE": (
        {"segmentation": {"size": list(SIZE), "counts": "abc~~"}},
        r"result 1 .*RLE counts do not decode .* Write the mask again",
    ),
    "gt_id": ({"gt_id": 12345}, r"result 1 .*gt_id 12345 is no annotation of image"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_RESULTS.values(), ids=BAD_RESULTS.keys())
def test_a_bad_result_stops_before_any_work(case, results, changes, message):
    data = copy.deepcopy(results)
    data[1] |= changes
    case.source.write_text(json.dumps(data))
    error = case.error()
    assert error.startswith("error: ") and re.search(rf"coarse\.json: {message}", error), error
    assert not case.output.exists() and not case.journal.exists()


def test_bad_files_stop_before_any_work(case, drawn, tmp_path):
    data = json.loads(drawn.annotation_file.read_text())
    data["annotations"][1]["id"] = data["annotations"][0]["id"]
    case.source.write_text(json.dumps(data))
    assert re.search(r"coarse\.json: annotation id 1 occurs more than once\. Give", case.error(annotations=None))
    case.source.write_text('[{"image_id": 1')
    assert re.search(r"coarse\.json: not valid JSON .* write or copy it again", case.error())
    assert "absent.json" in case.error(input=tmp_path / "absent.json")
    assert not case.output.exists() and not case.journal.exists()


def test_results_need_annotations_for_their_images(case):
    assert re.search(r"coarse\.json is a results file.* --annotations", case.error(annotations=None))


def copied(drawn, folder):
    folder.mkdir()
    for path in drawn.image_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder, sorted(folder.iterdir())


def test_missing_images_and_images_of_another_size_stop_before_any_work(case, drawn, tmp_path):
    folder, paths = copied(drawn, tmp_path / "images")
    paths[1].unlink()
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(paths[2])
    message = case.error(images=folder)
    assert re.search(rf"2 image\(s\) cannot be used:\n.*{paths[1].name} \(image id 2\) is missing", message)
    assert f"{paths[2].name} (image id 3) is 50 x 60 (height x width), in the JSON 96 x 128" in message
    assert not case.output.exists() and not case.journal.exists()


def test_a_truncated_jpeg_is_named_and_its_masks_kept(case, drawn, results, reference, tmp_path, capsys):
    folder, paths = copied(drawn, tmp_path / "images")
    paths[1].write_bytes(paths[1].read_bytes()[:-500])
    refined = case.run(images=folder)
    for new, whole, old in zip(refined, json.loads(reference), results, strict=True):
        assert new == (old if old["image_id"] == 2 else whole)
    output = capsys.readouterr().out
    count = sum(record["image_id"] == 2 for record in results)
    assert f"{count} image could not be read" in output
    assert re.search(rf"1 image\(s\) could not be read:\n.*{paths[1].name} cannot be read as an image", output)


def test_images_of_every_kind(case, drawn, results, tmp_path, capsys):
    folder, paths = copied(drawn, tmp_path / "images")
    for path, mode in zip(paths, ("L", "RGBA", "P", "I;16"), strict=False):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"), np.uint16) * 257 if mode == "I;16" else None
            changed = image.convert(mode) if pixels is None else Image.fromarray(pixels)
        # the ending is only a name: Pillow looks into the file
        changed.save(path, format="PNG")
    refined = case.run(images=folder)
    assert without(refined, "segmentation") == without(results, "segmentation")
    assert "could not be read" not in capsys.readouterr().out


def test_wrong_use_is_explained(case, tmp_path, capsys, monkeypatch):
    before = case.source.read_bytes()
    assert "is also read: write to another file" in case.error(output=case.source)
    assert case.source.read_bytes() == before
    assert "is a folder: name a file" in case.error(output=tmp_path)
    assert "Config overrides (MODEL.REFINER.NUM_ITERS 1) need --config" in case.error("MODEL.REFINER.NUM_ITERS", "1")
    assert case.error("--num-iters", "0") == "2"
    assert "expected at least 1, got 0" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert re.search(r"2 workers exceed the GPUs of this machine, 1: .*CUDA_VISIBLE_DEVICES", case.error(
        "--num-workers", "2"
    ))  # fmt: skip


def test_an_output_folder_that_cannot_be_made_stops_before_any_work(case, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    asked = stop_after(monkeypatch, NUM_IMAGES)
    assert case.error(output=tmp_path / "file" / "refined.json").startswith("error: ")
    assert not asked


def test_help_needs_neither_torch_nor_detectron2_and_has_examples():
    command = [sys.executable, "-c", LAUNCHER, "detectron2,torch", str(TOOL), "--help"]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "python tools/refine_json.py --images val2017 --input coco_instances_results.json" in completed.stdout
