"""The command lines of tools/degrade_json.py and tools/draw_json.py."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest

from phoenix_d2.data.datasets.drawn import draw_dataset
from phoenix_d2.data.mask_json import decode_segmentation, encode_mask

TOOLS = Path(__file__).parents[2] / "tools"


def run(tool: str, *arguments: str | Path) -> None:
    runpy.run_path(str(TOOLS / tool))["main"](list(map(str, arguments)))


def test_the_ground_truth_is_not_replaced(tmp_path: Path) -> None:
    annotations = draw_dataset(tmp_path / "data", num_images=1, image_size=(96, 128)).annotation_file
    before = annotations.read_bytes()
    with pytest.raises(SystemExit, match="is also read: write to another file"):
        run("degrade_json.py", "--annotations", annotations, "--output", annotations)
    assert annotations.read_bytes() == before


@pytest.mark.parametrize(
    ("tool", "option", "value"),
    [("draw_json.py", "--num", "0"), ("draw_json.py", "--columns", "-1"), ("degrade_json.py", "--seed", "-1")],
)
def test_numbers_that_make_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tool: str, option: str, value: str
) -> None:
    files = ["--annotations", "a.json", "--output", str(tmp_path / "out")]
    files += ["--images", ".", "--results", "b.json"] if tool == "draw_json.py" else []
    with pytest.raises(SystemExit, match="2"):
        run(tool, *files, option, value)
    assert f"{option}" in (errors := capsys.readouterr().err) and "expected at least" in errors


def test_degrade_and_draw(tmp_path: Path) -> None:
    data = tmp_path / "data"
    draw_dataset(data, num_images=3, image_size=(96, 128), seed=0)
    annotations, coarse, pictures = data / "instances.json", tmp_path / "coarse.json", tmp_path / "pictures"
    run("degrade_json.py", "--annotations", annotations, "--output", coarse, "--kind", "polygon")
    records = json.loads(coarse.read_text())
    assert len(records) == len(json.loads(annotations.read_text())["annotations"])

    arguments = ("--images", data / "images", "--annotations", annotations, "--num", "2", "--output")
    run("draw_json.py", *arguments, pictures, "--results", coarse)
    singles = [path for path in pictures.glob("*.png") if path.name != "overview.png"]
    assert len(singles) == 2
    # image, ground truth and result beside one another, under a caption and a line of titles
    picture = cv2.imread(str(singles[0]))
    height, width = picture.shape[0] - 44, (picture.shape[1] - 8) / 3
    assert max(height, width) == 256 and picture.std() > 5
    assert cv2.imread(str(pictures / "overview.png")).shape[0] >= picture.shape[0]

    # files of one name in different folders are different files
    twin = tmp_path / "other" / coarse.name
    twin.parent.mkdir()
    twin.write_text(json.dumps(records))
    run("draw_json.py", *arguments, tmp_path / "two", "--results", coarse, twin)
    # one more result, and what the last changed
    assert cv2.imread(str(tmp_path / "two" / singles[0].name)).shape[1] == 5 * width + 4 * 4

    # pictures of an earlier call are not mixed with those of another
    with pytest.raises(SystemExit, match="pictures exists: name a new folder"):
        run("draw_json.py", *arguments, pictures, "--results", coarse)

    shorter = tmp_path / "shorter.json"
    shorter.write_text(json.dumps(records[1:]))
    with pytest.raises(SystemExit, match="differ in length"):
        run("draw_json.py", *arguments, tmp_path / "three", "--results", coarse, shorter)
    shorter.write_text("[]")
    with pytest.raises(SystemExit, match="nothing to draw"):
        run("draw_json.py", *arguments, tmp_path / "three", "--results", shorter)
    with pytest.raises(SystemExit, match=r"^error: Unknown degradation 'fog'"):
        run("degrade_json.py", "--annotations", annotations, "--output", coarse, "--kind", "fog")


def test_the_largest_changes_are_drawn(tmp_path: Path) -> None:
    """Of an annotation file and another made from it."""
    data = tmp_path / "data"
    annotations = draw_dataset(data, num_images=3, image_size=(96, 128), seed=0).annotation_file
    content = json.loads(annotations.read_text())
    changed = tmp_path / "changed.json"
    for index, place in enumerate((4, 2)):
        # the first is moved away, the second loses a pixel column or so
        record = content["annotations"][place]
        mask = decode_segmentation(record["segmentation"], 96, 128)
        mask = np.roll(mask, 60, axis=1) if index == 0 else mask & np.roll(mask, 1, axis=1)
        record["segmentation"] = encode_mask(mask)
    changed.write_text(json.dumps(content))
    arguments = ("--images", data / "images", "--annotations", annotations, "--results", annotations, changed)
    run("draw_json.py", *arguments, "--output", tmp_path / "one", "--num", "1")
    assert [path.name for path in sorted((tmp_path / "one").iterdir())] == ["000004.png", "overview.png"]
    run("draw_json.py", *arguments, "--output", tmp_path / "two", "--num", "2")
    assert [path.name for path in sorted((tmp_path / "two").iterdir())] == ["000002.png", "000004.png", "overview.png"]
