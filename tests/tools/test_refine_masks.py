"""The command lines of tools/refine_masks.py and tools/evaluate_masks.py."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phoenix_d2.data.mask_folders import read_mask, write_mask
from phoenix_d2.offline import run

SIZE = (60, 80)


def load_tool(name):
    path = Path(__file__).parents[2] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFINE, EVALUATE = load_tool("refine_masks"), load_tool("evaluate_masks")


@pytest.fixture
def folders(tmp_path):
    """Three images of a bright square, and masks of it with holes that a morphological refiner closes."""
    for i in range(3):
        target = np.zeros(SIZE, bool)
        target[15:45, 20 + i : 50 + i] = True
        image = np.full((*SIZE, 3), 40, np.uint8)
        image[target] = 200
        (tmp_path / "im").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "im" / f"{i}.jpg")
        write_mask(tmp_path / "gt" / f"{i}.png", target)
        target[30, 30] = False
        write_mask(tmp_path / "coarse" / f"{i}.png", target)
    return tmp_path


def refine_masks(folders, *more):
    REFINE.main(
        ["--images", str(folders / "im"), "--masks", str(folders / "coarse"), "--output", str(folders / "out"),
         "--refiner", "morphology", *more]
    )  # fmt: skip


def error(folders, *more):
    with pytest.raises(SystemExit) as stop:
        refine_masks(folders, *more)
    return str(stop.value)


def test_masks_keep_their_names(folders, capsys):
    write_mask(folders / "coarse" / "1.png", np.zeros(SIZE, bool))
    refine_masks(folders)
    assert sorted(path.name for path in (folders / "out").iterdir()) == ["0.png", "1.png", "2.png"]
    assert read_mask(folders / "out" / "0.png")[30, 30] and not read_mask(folders / "out" / "1.png").any()
    assert "3 masks in 3 images: 2 refined, 1 kept (1 empty)" in capsys.readouterr().out
    assert sorted(path.name for path in folders.iterdir()) == ["coarse", "gt", "im", "out"]


def test_a_stopped_run_goes_on(folders, monkeypatch):
    original, seen = run.refine_image, []

    def refine_image(refiner, task, **options):
        seen.append(task.image_id)
        if len(seen) == 3:
            raise RuntimeError("out of memory")
        return original(refiner, task, **options)

    monkeypatch.setattr(run, "refine_image", refine_image)
    with pytest.raises(RuntimeError, match="out of memory"):
        refine_masks(folders)
    assert not (folders / "out").exists()
    assert "holds 2 images" in error(folders)
    # what a kill leaves while masks are written
    (folders / "out.partial" / "masks").mkdir()
    (folders / "out.partial" / "masks" / ".0.png.1.tmp").write_bytes(b"half")
    refine_masks(folders, "--resume")
    assert seen == ["0", "1", "2", "2"] and len(list((folders / "out").iterdir())) == 3


def test_other_masks_do_not_go_on(folders, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr("phoenix_d2.offline.mask_job.write_mask", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            refine_masks(folders)
    write_mask(folders / "coarse" / "0.png", np.ones(SIZE, bool))
    assert "other masks" in error(folders, "--resume")


def test_bad_input_stops_before_any_work(folders):
    write_mask(folders / "coarse" / "2.png", np.ones((5, 5), bool))
    assert re.search(r"error: .*2\.png is 5 x 5 .*resize the mask", error(folders))
    (folders / "coarse" / "2.png").unlink()
    assert "2: no 2.png in" in error(folders)
    (folders / "im" / "2.jpg").unlink()
    (folders / "out").mkdir()
    (folders / "out" / "old.txt").write_text("old")
    assert "exists: name a new folder" in error(folders)
    assert [path.name for path in (folders / "out").iterdir()] == ["old.txt"]
    assert not (folders / "out.partial").exists()


def test_a_table_of_several_sets(folders, capsys):
    (folders / "set2").mkdir()
    for name in ("gt", "coarse"):
        for path in (folders / name).iterdir():
            write_mask(folders / "set2" / name / path.name, read_mask(path))
    targets = [folders / "gt", folders / "coarse"]
    EVALUATE.main(["--targets", *map(str, targets), "--before", *map(str, targets[::-1]), "--after",
                   *map(str, targets), "--metrics", "IoU", "Dice"])  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", lines[0].strip()) == ["IoU before", "IoU after", "Dice before", "Dice after"]
    rows = {line.split()[0]: list(map(float, line.split()[1:])) for line in lines[2:]}
    assert list(rows) == ["gt", "coarse", "average"]
    assert rows["gt"] == [99.89, 100, 99.94, 100] and rows["average"][1] == 100


def test_wrong_evaluations_are_explained(folders, capsys):
    with pytest.raises(SystemExit):
        EVALUATE.main(["--targets", "a", "b", "--before", "a"])
    assert "--before has 1 folder(s) for 2 of --targets" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"error: .*holds no images"):
        EVALUATE.main(["--targets", str(folders / "gt"), "--before", str(folders / "absent")])
