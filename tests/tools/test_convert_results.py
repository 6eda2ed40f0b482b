"""tools/convert_results.py from the command line."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from phoenix_d2.data.mask_json import load_results
from tools.convert_results import main


@pytest.fixture
def arguments(tmp_path):
    """Masks of one image as PNG, and where the results go."""
    content = {
        "images": [{"id": 4, "file_name": "one.jpg", "height": 12, "width": 16}],
        "annotations": [],
        "categories": [{"id": 2, "name": "thing"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    (tmp_path / "masks").mkdir()
    labels = np.zeros((12, 16), np.uint8)
    labels[2:6, 2:6], labels[7:11, 8:14] = 1, 2
    cv2.imwrite(str(tmp_path / "masks" / "one.png"), labels)
    paths = {"input": "masks", "annotations": "instances.json", "output": "results.json"}
    return ["--format", "masks", *(word for key, name in paths.items() for word in (f"--{key}", str(tmp_path / name)))]


def test_results_are_written(arguments, tmp_path, capsys):
    main(arguments)
    assert "2 masks of 1 images written to" in capsys.readouterr().out
    assert [each["image_id"] for each in load_results(tmp_path / "results.json")] == [4, 4]


def test_bad_input_leaves_the_output(arguments, tmp_path):
    (tmp_path / "results.json").write_text("before")
    (tmp_path / "masks" / "other.png").write_bytes((tmp_path / "masks" / "one.png").read_bytes())
    with pytest.raises(SystemExit, match=r"^error: .*no image is called 'other'"):
        main(arguments)
    assert (tmp_path / "results.json").read_text() == "before"


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "save_json=True" in capsys.readouterr().out
