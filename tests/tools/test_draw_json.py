"""The command lines of tools/degrade_json.py and tools/draw_json.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2

from phoenix_d2.data.datasets.drawn import draw_dataset

TOOLS = Path(__file__).parents[2] / "tools"


def run(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOLS / tool, *map(str, arguments)], capture_output=True, text=True)


def test_degrade_and_draw(tmp_path: Path) -> None:
    data = tmp_path / "data"
    draw_dataset(data, num_images=3, image_size=(96, 128), seed=0)
    annotations, coarse, pictures = data / "instances.json", tmp_path / "coarse.json", tmp_path / "pictures"
    degraded = run("degrade_json.py", "--annotations", annotations, "--output", coarse, "--kind", "polygon")
    assert degraded.returncode == 0, degraded.stderr
    records = json.loads(coarse.read_text())
    assert len(records) == len(json.loads(annotations.read_text())["annotations"])

    arguments = ("--images", data / "images", "--annotations", annotations, "--output", pictures, "--num", "2")
    drawn = run("draw_json.py", *arguments, "--results", coarse)
    assert drawn.returncode == 0, drawn.stderr
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
    assert run("draw_json.py", *arguments, "--results", coarse, twin).returncode == 0
    assert cv2.imread(str(singles[0])).shape[1] > picture.shape[1]

    shorter = tmp_path / "shorter.json"
    shorter.write_text(json.dumps(records[1:]))
    refused = run("draw_json.py", *arguments, "--results", coarse, shorter)
    assert refused.returncode == 1 and "differ in length" in refused.stderr

    shorter.write_text("[]")
    refused = run("draw_json.py", *arguments, "--results", shorter)
    assert refused.returncode == 1 and "nothing to draw" in refused.stderr

    refused = run("degrade_json.py", "--annotations", annotations, "--output", coarse, "--kind", "fog")
    assert refused.returncode == 1 and refused.stderr.startswith("error: Unknown degradation 'fog'")
