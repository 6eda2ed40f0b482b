"""The command line of tools/evaluate_json.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from phoenix_d2.data.mask_json import encode_mask

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "evaluate_json.py"
# runs the tool where any import of detectron2 or torch fails
LAUNCHER = """
import runpy, sys
sys.modules.update(detectron2=None, torch=None)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments):
    command = [sys.executable, "-c", LAUNCHER, str(TOOL), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def square(x0):
    mask = np.zeros((100, 100), dtype=bool)
    mask[10:50, x0 : x0 + 40] = True
    return encode_mask(mask)


def result(x0, **changes):
    return {"image_id": 1, "category_id": 1, "segmentation": square(x0), "score": 1.0, "gt_id": 5, **changes}


@pytest.fixture
def write(tmp_path):
    def write_json(name, data):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(data))
        return path

    return write_json


@pytest.fixture
def truth(write):
    image = {"id": 1, "height": 100, "width": 100, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    annotation = {"id": 5, "image_id": 1, "category_id": 1, "segmentation": square(10), "area": 1600}
    category = {"id": 1, "name": "thing", "frequency": "r"}
    return write("truth.json", {"images": [image], "annotations": [annotation], "categories": [category]})


def table(output):
    """{row name: {column: cell}} of a printed table."""
    header, _, *lines = output.split("\n\n")[0].splitlines()
    columns = header.split()
    return {line.split()[0]: dict(zip(columns, line.split()[1:], strict=True)) for line in lines}


def test_one_row_a_file_without_detectron2(truth, write, tmp_path):
    coarse, refined = write("coarse.json", [result(12)]), write("refined.json", [result(11)])
    output = tmp_path / "new" / "scores.json"
    completed = run("--annotations", truth, "--results", coarse, refined, "--output", output)
    assert completed.returncode == 0, completed.stderr
    rows = table(completed.stdout)
    assert list(rows) == ["coarse", "refined"]
    # 40-pixel squares shifted by 2 and by 1: mask IoU 38 / 42 and 39 / 41, Boundary IoU 296 / 592 and 370 / 518
    assert [rows["coarse"][key] for key in ("AP", "bAP", "IoU", "bIoU")] == ["90.00", "10.00", "90.48", "50.00"]
    assert [rows["refined"][key] for key in ("AP", "bAP", "IoU", "bIoU")] == ["100.00", "50.00", "95.12", "71.43"]
    assert rows["refined"]["APl"] == rows["refined"]["bAPl"] == "-"
    assert "2 % of the image diagonal wide; for 0.0 % of the ground truth" in completed.stdout

    scores = json.loads(output.read_text())
    assert scores["files"][str(refined)]["boundary"]["AP"] == pytest.approx(50)
    assert scores["files"][str(refined)]["boundary"]["APl"] is None
    assert scores["files"][str(refined)]["paired"]["num_pairs"] == 1


def test_lvis_style(truth, write):
    completed = run("--annotations", truth, "--style", "lvis", "--results", write("a.json", [result(11)]))
    assert completed.returncode == 0, completed.stderr
    row = table(completed.stdout)["a"]
    assert [row[key] for key in ("APr", "APc", "bAPr", "bAPf")] == ["100.00", "-", "50.00", "-"]


def test_lvis_style_leaves_out_what_lvis_says_nothing_of(truth, write):
    others = [result(30, category_id=80), result(30, image_id=2)]
    for record in others:
        del record["gt_id"]
    completed = run("--annotations", truth, "--style", "lvis", "--results", write("a.json", [result(10), *others]))
    assert completed.returncode == 0, completed.stderr
    assert table(completed.stdout)["a"]["AP"] == "100.00"
    assert re.search(r"Not judged: 2 results of .*a\.json, on other images or of other", completed.stdout)
    nothing = run("--annotations", truth, "--style", "lvis", "--results", write("b.json", others[:1]))
    assert re.search(r"^error: .*b\.json: .*category id 80 is not among", nothing.stderr), nothing.stderr


def test_pseudo_labels_may_be_an_annotation_file(truth, write):
    data = json.loads(truth.read_text())
    crowd = {**data["annotations"][0], "id": 6, "iscrowd": 1}
    path = write("a.json", {**data, "annotations": [*data["annotations"], crowd]})
    completed = run("--annotations", truth, "--results", path)
    assert completed.returncode == 0, completed.stderr
    row = table(completed.stdout)["a"]
    assert row["AP"] == row["bAP"] == "100.00"


def test_class_agnostic_markdown_and_dilation_ratio(truth, write):
    other_class = result(11, category_id=80)
    del other_class["gt_id"]
    path = write("a.json", [other_class])
    completed = run(
        "--annotations", truth, "--results", path, "--class-agnostic", "--markdown", "--dilation-ratio", "0.05"
    )
    assert completed.returncode == 0, completed.stderr
    header, rule, row = completed.stdout.split("\n\n")[0].splitlines()
    assert rule.startswith("|--")
    cells = dict(zip(header.split("|")[1:-1], row.split("|")[1:-1], strict=True))
    cells = {key.strip(): cell.strip() for key, cell in cells.items()}
    assert (cells[""], cells["AP"], cells["bAP"]) == ("a", "100.00", "80.00")
    assert "IoU" not in cells


def test_files_of_one_name_keep_their_folders(truth, write):
    paths = [write("one/masks.json", [result(10)]), write("two/masks.json", [result(11)])]
    completed = run("--annotations", truth, "--results", *paths)
    assert list(table(completed.stdout)) == [str(path) for path in paths]


def test_only_images_that_all_files_have_masks_on(truth, write):
    data = json.loads(truth.read_text())
    data["images"].append({**data["images"][0], "id": 2})
    data["annotations"].append({**data["annotations"][0], "id": 6, "image_id": 2})
    both = write("two.json", data)
    other = result(40, image_id=2, gt_id=6)
    coarse, refined = write("coarse.json", [result(10), other]), write("refined.json", [result(10)])
    options = ("--annotations", both, "--results", coarse, refined)
    everywhere, common = (run(*options, *more).stdout for more in ((), ("--common-images",)))
    # refined.json found one object of two
    assert [table(everywhere)[name]["AP"] for name in ("coarse", "refined")] == ["50.50", "50.50"]
    assert [table(common)[name]["AP"] for name in ("coarse", "refined")] == ["100.00", "100.00"]
    assert "Not judged: 1 results of" in common
    elsewhere = write("elsewhere.json", [other])
    completed = run("--annotations", both, "--results", refined, elsewhere, "--common-images")
    assert completed.returncode == 1 and "No image has masks in all of" in completed.stderr


def test_what_is_read_is_not_replaced(truth, write):
    results = write("a.json", [result(10)])
    for read in (truth, results):
        before = read.read_bytes()
        completed = run("--annotations", truth, "--results", results, "--output", read)
        assert completed.stderr.startswith(f"error: --output {read} is also read"), completed.stderr
        assert read.read_bytes() == before


def test_ground_truth_of_an_unknown_category_is_not_left_out(truth, write):
    data = json.loads(truth.read_text())
    data["annotations"].append({**data["annotations"][0], "id": 6, "category_id": 80})
    truth.write_text(json.dumps(data))
    arguments = ("--annotations", truth, "--results", write("a.json", [result(10)]))
    assert re.search(r"^error: .*annotation id 6 .*category id 80 is not among", run(*arguments).stderr)
    assert run(*arguments, "--class-agnostic").returncode == 0


def test_what_cannot_be_measured_is_said(truth, write):
    alone = result(10)
    del alone["gt_id"]
    completed = run("--annotations", truth, "--results", write("a.json", [result(10)]), write("b.json", [alone]))
    assert re.search(r"^No IoU of \S*b\.json: no record says in 'gt_id'", completed.stdout, re.MULTILINE)
    data = json.loads(truth.read_text())
    data["annotations"][0]["iscrowd"] = 1
    truth.write_text(json.dumps(data))
    failed = run("--annotations", truth, "--results", write("b.json", [alone]))
    assert failed.returncode == 1 and "truth.json holds no objects but crowds" in failed.stderr


BAD_RESULTS = {
    "neither": ({"images": []}, "expected an annotation file"),
    "NaN score": ([result(10, score=float("nan"))], "result 0 .*score must be a finite number"),
    "unknown image": ([result(10, image_id=3)], "no such image"),
    "unknown category": ([result(10, category_id=80)], "category id 80 .* evaluate class-agnostically"),
}


@pytest.mark.parametrize(("data", "message"), BAD_RESULTS.values(), ids=BAD_RESULTS.keys())
def test_a_bad_file_stops_before_any_work(truth, write, tmp_path, data, message):
    output = tmp_path / "scores.json"
    good, bad = write("good.json", [result(10)]), write("bad.json", data)
    completed = run("--annotations", truth, "--results", good, bad, "--output", output)
    assert completed.returncode == 1
    assert re.search(rf"^error: .*bad\.json: .*{message}", completed.stderr), completed.stderr
    assert "Traceback" not in completed.stderr
    assert not output.exists()


def test_wrong_use_is_explained(truth, write, tmp_path):
    assert "error: [Errno 2]" in run("--annotations", tmp_path / "absent.json", "--results", truth).stderr
    assert "between 0 and 1, got 2" in run("--annotations", truth, "--results", truth, "--dilation-ratio", "2").stderr
    results = write("a.json", [result(10)])
    combined = run("--annotations", truth, "--results", results, "--style", "lvis", "--class-agnostic")
    assert combined.stderr.startswith("error: LVIS style evaluates category by category.")


def test_help_has_an_example():
    completed = run("--help")
    assert completed.returncode == 0
    assert "python tools/evaluate_json.py --annotations instances.json --results" in completed.stdout
