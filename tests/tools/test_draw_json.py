"""The command lines of tools/degrade_json.py and tools/draw_json.py."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import cv2
import pytest

from phoenix_d2.data.datasets.drawn import draw_dataset

TOOLS = Path(__file__).parents[2] / "tools"


def run(tool: str, *arguments: str | Path) -> None:
    runpy.run_path(str(TOOLS / tool))["main"](list(map(str, arguments)))


def test_degrade_and_draw(tmp_path: Path) -> None:
    data = tmp_path / "data"
    draw_dataset(data, num_images=3, image_size=(96, 128), seed=0)
    annotations, coarse, pictures = data / "instances.json", tmp_path / "coarse.json", tmp_path / "pictures"
    run("degrade_json.py", "--annotations", annotations, "--output", coarse, "--kind", "polygon")
    records = json.loads(coarse.read_text())
    assert len(records) == len(json.loads(annotations.read_text())["annotations"])

    arguments = ("--images", data / "images", "--annotations", annotations, "--output", pictures, "--num", "2")
    run("draw_json.py", *arguments, "--results", coarse)
    singles = [path for path in pictures.glob("*.png") if path.name != "overview.png"]
    assert len(singles) == 2
    # image, ground truth and result beside one another, under a line of title
    picture = cv2.imread(str(singles[0]))
    height, width = picture.shape[0] - 22, (picture.shape[1] - 8) / 3
    assert max(height, width) == 256 and picture.std() > 5
    assert cv2.imread(str(pictures / "overview.png")).shape[0] >= picture.shape[0]

    # files of one name in different folders are different files
    twin = tmp_path / "other" / coarse.name
    twin.parent.mkdir()
    twin.write_text(json.dumps(records))
    run("draw_json.py", *arguments, "--results", coarse, twin)
    assert cv2.imread(str(singles[0])).shape[1] > picture.shape[1]

    shorter = tmp_path / "shorter.json"
    shorter.write_text(json.dumps(records[1:]))
    with pytest.raises(SystemExit, match="differ in length"):
        run("draw_json.py", *arguments, "--results", coarse, shorter)
    shorter.write_text("[]")
    with pytest.raises(SystemExit, match="nothing to draw"):
        run("draw_json.py", *arguments, "--results", shorter)
    with pytest.raises(SystemExit, match=r"^error: Unknown degradation 'fog'"):
        run("degrade_json.py", "--annotations", annotations, "--output", coarse, "--kind", "fog")
