"""Runs that were killed, workers and shards: the same bytes in the end."""

from __future__ import annotations

import re
import time

import pytest

from tests.tools.refine_json.runs import LAUNCHER, NUM_IMAGES, TOOL_MODULE, stop_after


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


def test_a_baseline_cannot_go_on_with_another(case, monkeypatch):
    with monkeypatch.context() as context:
        stop_after(context, 2)
        with pytest.raises(RuntimeError, match="out of memory"):
            case.run("--refiner", "grabcut", weights=None)
    assert "other refiner, parameters: repeat" in case.error("--refiner", "morphology", "--resume", weights=None)
    assert re.search(r"other refiner, .*weights.*: repeat", case.error("--resume"))
