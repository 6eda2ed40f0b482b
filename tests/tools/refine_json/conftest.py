"""The tool tools/refine_json.py on a drawn dataset, with a tiny refiner of random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from phoenix_d2.data.datasets.drawn import draw_dataset
from phoenix_d2.predictor import PhoenixRefiner
from phoenix_d2.refiner import RefineOptions
from phoenix_d2.sam.build import build_refiner
from tests.tools.refine_json.runs import NUM_IMAGES, ROOT, SIZE, TOOL, TOOL_MODULE


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
