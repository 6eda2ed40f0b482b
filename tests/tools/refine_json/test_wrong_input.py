"""Wrong input and wrong use end in a line, before any work."""

from __future__ import annotations

import json
import re

from tests.tools.refine_json.runs import NUM_IMAGES, stop_after


def test_bad_input_stops_before_any_work(case, drawn, results, tmp_path):
    def fails(message, **changes):
        error = case.error(**changes)
        assert error.startswith("error: ") and re.search(message, error), error
        assert not case.output.exists() and not case.journal.exists()

    fails("absent.json", input=tmp_path / "absent.json")
    fails(r"6 image\(s\) cannot be used:\n.* is missing", images=tmp_path)
    case.source.write_text(json.dumps([results[0], {**results[1], "image_id": 99}]))
    fails(r"coarse\.json: result 1 .*\(image 99\): no such image .* Use the annotation file")


def test_invalid_records_can_be_left_as_they_are(case, results, capsys):
    wrong = [{**results[1], "image_id": 99}, {**results[2], "segmentation": [[1, 2, 3]]}, 7]
    case.source.write_text(json.dumps([results[0], *wrong]))
    error = case.error()
    assert "3 records have mistakes:\n" in error and "--skip-invalid" in error
    for mistake in ("result 1 .* no such image", "result 2 .* at least 3 points", "result 3 .* missing"):
        assert re.search(mistake, error)
    refined = case.run("--skip-invalid")
    assert refined[1:] == wrong and refined[0] != results[0]
    summary = capsys.readouterr().out
    assert "4 masks in 1 images: 1 refined, 3 kept (3 invalid)" in summary
    assert re.search(r"3 invalid record\(s\) stay as they were:\n.*result 1 .*\n.*result 2 .*\n.*result 3", summary)


def test_wrong_use_is_explained(case, tmp_path, capsys):
    before = case.source.read_bytes()
    assert "is also read: write to another file" in case.error(output=case.source)
    assert case.source.read_bytes() == before
    assert "is a folder: name a file" in case.error(output=tmp_path)
    assert "Config overrides (MODEL.REFINER.NUM_ITERS 1) need --config; with --config phoenix_tiny.yaml" in case.error(
        "MODEL.REFINER.NUM_ITERS", "1"
    )
    assert case.error("--num-iters", "0") == "2"
    assert "expected at least 1, got 0" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_made_stops_before_any_work(case, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    asked = stop_after(monkeypatch, NUM_IMAGES)
    assert case.error(output=tmp_path / "file" / "refined.json").startswith("error: ")
    assert not asked
