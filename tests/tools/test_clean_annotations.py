"""The command line of tools/clean_annotations.py, on a drawn dataset and a refiner without a network."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from phoenix_d2.data.datasets.drawn import draw_dataset
from phoenix_d2.data.mask_json import decode_segmentation, run_lengths
from phoenix_d2.data.polygons import mask_to_polygons
from phoenix_d2.offline import run

TOOL = Path(__file__).parents[2] / "tools" / "clean_annotations.py"
SIZE = (96, 128)


def load_tool():
    spec = importlib.util.spec_from_file_location("clean_annotations", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL_MODULE = load_tool()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("drawn") / "set", num_images=4, image_size=SIZE)


@pytest.fixture(scope="module")
def annotations(drawn):
    """Drawn objects as polygons, plain and compressed RLE in turn, the last one a crowd, in LVIS' layout."""
    data = json.loads(drawn.annotation_file.read_text())
    for image in data["images"]:
        image["coco_url"] = f"http://images.example/{drawn.image_folder.name}/{image.pop('file_name')}"
        image |= {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
    for index, record in enumerate(data["annotations"]):
        mask = decode_segmentation(record["segmentation"], *SIZE)
        if index % 3 == 0:
            record["segmentation"] = mask_to_polygons(mask, tolerance=1)
        elif index % 3 == 1:
            record["segmentation"]["counts"] = run_lengths(record["segmentation"]["counts"]).tolist()
        record["attributes"] = {"occluded": index % 2 == 0, "note": "ü"}
    data["annotations"][-1]["iscrowd"] = 1
    return data


@pytest.fixture
def case(tmp_path, drawn, annotations):
    source, output = tmp_path / "instances.json", tmp_path / "cleaned.json"
    source.write_text(json.dumps(annotations))

    def run(*more, **changes):
        options = {
            "--images": drawn.image_folder.parent,
            "--input": source,
            "--output": output,
            "--refiner": "morphology",
            **{f"--{key}": value for key, value in changes.items()},
        }
        TOOL_MODULE.main([*(str(part) for pair in options.items() for part in pair), *more])

    def error(*more, **changes):
        with pytest.raises(SystemExit) as stop:
            run(*more, **changes)
        return str(stop.value)

    def names():
        return sorted(path.name for path in tmp_path.iterdir())

    return SimpleNamespace(source=source, output=output, run=run, error=error, names=names)


def kind(segmentation):
    return list if isinstance(segmentation, list) else type(segmentation["counts"])


def without(record, *keys):
    return {key: value for key, value in record.items() if key not in keys}


def test_the_same_records_with_other_masks(case, annotations, capsys):
    case.run()
    cleaned = json.loads(case.output.read_text())
    assert without(cleaned, "annotations") == without(annotations, "annotations")
    verdicts = [json.loads(line) for line in (case.output.parent / "cleaned.verdicts.jsonl").read_text().splitlines()]
    rows = list(zip(annotations["annotations"], cleaned["annotations"], verdicts, strict=True))
    refined = [(old, new) for old, new, verdict in rows if verdict["verdict"] == "refined"]
    assert len(refined) > len(rows) / 2 and {kind(old["segmentation"]) for old, _ in refined} == {list, str}
    for old, new, verdict in rows:
        assert list(new) == list(old) and kind(new["segmentation"]) is kind(old["segmentation"])
        assert without(new, "segmentation", "area", "bbox") == without(old, "segmentation", "area", "bbox")
        assert verdict["annotation_id"] == old["id"] and (verdict["verdict"] == "refined" or new == old)
    for _, new in refined:
        mask = decode_segmentation(new["segmentation"], *SIZE)
        x, y, width, height = map(int, new["bbox"])
        assert new["area"] == mask.sum() == mask[y : y + height, x : x + width].sum()
    assert verdicts[-1]["verdict"] == "crowd"
    output = capsys.readouterr().out
    assert f"verdicts: {len(refined)} refined" in output
    assert f"written to {case.output}, cleaned.verdicts.jsonl and cleaned.report.html" in output
    assert case.names() == ["cleaned.json", "cleaned.report.html", "cleaned.verdicts.jsonl", "instances.json"]


def test_a_run_that_was_stopped_goes_on(case, monkeypatch):
    case.run()
    expected = case.output.read_bytes()
    case.output.unlink()
    seen, original = [], run.refine_image

    def refine_image(refiner, task, **options):
        seen.append(task.image_id)
        if len(seen) == 3:
            raise RuntimeError("out of memory")
        return original(refiner, task, **options)

    monkeypatch.setattr(run, "refine_image", refine_image)
    with pytest.raises(RuntimeError, match="out of memory"):
        case.run()
    assert not case.output.exists() and "cleaned.json.partial" in case.names()
    assert "go on with --resume" in case.error()
    case.run("--resume")
    assert case.output.read_bytes() == expected and len(seen) == len(set(seen)) + 1
    assert "cleaned.json.partial" not in case.names()


def test_shards_clean_the_same(case, capsys):
    case.run()
    expected = case.output.read_bytes()
    case.output.unlink()
    for shard in ("1/2", "2/2"):
        case.run("--shard", shard)
        assert not case.output.exists()
    assert "images are finished" in capsys.readouterr().out
    case.run("--resume")
    assert case.output.read_bytes() == expected


def test_the_tolerance_is_obeyed(case):
    def num_values(tolerance):
        case.run(tolerance=tolerance)
        records = json.loads(case.output.read_text())["annotations"]
        return sum(len(p) for r in records if kind(r["segmentation"]) is list for p in r["segmentation"])

    assert num_values(0) > num_values(1)


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf"])
def test_a_tolerance_is_a_length(case, tolerance, capsys):
    case.error(tolerance=tolerance)
    assert f"expected at least 0 pixels, got {tolerance}" in capsys.readouterr().err


def test_bad_input_is_told_before_anything_is_written(case, annotations, tmp_path):
    assert "is also read: write to another file" in case.error(output=case.source)
    (tmp_path / "folder.report.html").mkdir()
    assert "folder.report.html is a folder" in case.error(output=tmp_path / "folder.json")
    case.source.write_text(json.dumps(annotations["annotations"]))
    assert "expected an annotation file" in case.error()
    case.source.write_text(json.dumps(annotations)[:-20])
    assert "not valid JSON" in case.error()
    assert "No such file" in case.error(input=tmp_path / "none.json")
    assert case.names() == ["folder.report.html", "instances.json"]


def test_invalid_annotations_are_a_verdict(case, annotations, drawn, capsys):
    broken = copy.deepcopy(annotations)
    first, second, *_ = broken["annotations"]
    first["segmentation"] = [[1, 2, 3, 4]]
    del second["image_id"], second["category_id"]
    gone = broken["images"][-1]
    gone["coco_url"] += ".gone"
    case.source.write_text(json.dumps(broken))
    assert "2 records have mistakes" in case.error()
    case.run("--skip-invalid")
    cleaned = json.loads(case.output.read_text())["annotations"]
    verdicts = [json.loads(line) for line in (case.output.parent / "cleaned.verdicts.jsonl").read_text().splitlines()]
    for old, new, verdict in zip(broken["annotations"], cleaned, verdicts, strict=True):
        is_invalid = old is first or old is second or (old["image_id"] == gone["id"] and not old.get("iscrowd"))
        assert (verdict["verdict"] == "invalid") == is_invalid
        assert not is_invalid or old == new
    assert verdicts[1]["image_id"] is None
    assert ".gone (image id" in capsys.readouterr().out
    assert "unknown" in (case.output.parent / "cleaned.report.html").read_text()


def test_masks_may_reach_every_edge(case, annotations):
    record = annotations["annotations"][0]
    full = {**record, "segmentation": [[0, 0, SIZE[1], 0, SIZE[1], SIZE[0], 0, SIZE[0]]]}
    case.source.write_text(json.dumps({**annotations, "annotations": [full]}))
    case.run()
    (new,) = json.loads(case.output.read_text())["annotations"]
    assert np.mean(decode_segmentation(new["segmentation"], *SIZE)) > 0.95
