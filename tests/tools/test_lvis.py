"""LVIS from the folder that it is published in: training, evaluation, and COCO detectors judged by it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_lvis

from phoenix_d2.data.build import build_test_loader
from phoenix_d2.data.datasets import register_cocofied_lvis
from phoenix_d2.data.mask_json import decode_segmentation
from phoenix_d2.evaluation.evaluators import BoundaryLVISEvaluator

TOOLS = Path(__file__).parents[2] / "tools"
SIZE = (96, 128)
# LVIS categories that are COCO's person, hot dog (by no synset) and cow, and one that COCO lacks
SYNSETS = ("person.n.01", "sausage.n.01", "beef.n.01", "aerosol.n.02")


def polygons(mask):
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [contour.ravel().tolist() for contour in contours if len(contour) > 2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A DETECTRON2_DATASETS of drawn pictures in which both data sets look as they are published."""
    from phoenix_d2.data.datasets.drawn import draw_dataset

    root = tmp_path_factory.mktemp("datasets")
    coco_categories = [{"id": 1, "name": "person"}, {"id": 58, "name": "hot dog"}, {"id": 21, "name": "cow"}]
    for seed, split in enumerate(("train", "val")):
        folder = root / "coco" / f"{split}2017"
        drawn = draw_dataset(root / "drawn" / split, num_images=3, image_size=SIZE, seed=seed)
        folder.mkdir(parents=True)
        for path in drawn.image_folder.iterdir():
            path.rename(folder / path.name)
        data = json.loads(drawn.annotation_file.read_text())
        coco = {"images": data["images"], "annotations": [], "categories": coco_categories}
        images = [
            {key: image[key] for key in ("id", "height", "width")}
            | {"coco_url": f"http://images.cocodataset.org/{split}2017/{image['file_name']}"}
            | {"neg_category_ids": [4], "not_exhaustive_category_ids": []}
            for image in data["images"]
        ]
        annotations = []
        for annotation in data["annotations"]:
            outline = polygons(decode_segmentation(annotation["segmentation"], *SIZE))
            kept = {key: annotation[key] for key in ("id", "image_id", "bbox", "area")}
            annotations.append(kept | {"segmentation": outline, "category_id": 1 + annotation["id"] % 3})
        categories = [
            {"id": i, "name": f"c{i}", "synset": synset, "frequency": "rcff"[i - 1]}
            for i, synset in enumerate(SYNSETS, start=1)
        ]
        lvis = {"images": images, "annotations": annotations, "categories": categories}
        for name, content in (
            (f"lvis/lvis_v1_{split}.json", lvis),
            (f"coco/annotations/instances_{split}2017.json", coco),
        ):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(json.dumps(content))
    return root


@pytest.fixture
def registered(root, monkeypatch):
    """Detectron2's own names, and ours, in that folder for a test."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))

    def register(folder):
        for name in [name for name in DatasetCatalog.list() if name.startswith("lvis_")]:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_all_lvis(str(folder))
        register_cocofied_lvis(folder)

    register(root)
    yield root
    register("datasets")


def load_tool(name):
    return runpy.run_path(str(TOOLS / f"{name}.py"))


def test_training_and_evaluation_by_the_shipped_config(registered, cfg, restored_loggers):
    tool = load_tool("train_net")
    options = {
        "MODEL.PHOENIX.ENCODER.NAME": "test",
        "MODEL.PHOENIX.ENCODER.WEIGHTS": "",
        "MODEL.PHOENIX.PERTURBATION.NUM_EMBEDDINGS": 4,
        "MODEL.PHOENIX.PERTURBATION.MAX_STEPS": 2,
        "MODEL.PHOENIX.DATA.MASKS_PER_IMAGE": 2,
        "MODEL.REFINER.NUM_ITERS": 1,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.AMP.ENABLED": False,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
        "TEST.EXPECTED_RESULTS": "[['coarse_segm', 'APf', 50.0, 50.0]]",
        "OUTPUT_DIR": cfg.OUTPUT_DIR,
    }
    arguments = [str(part) for pair in options.items() for part in pair]
    scores = tool["main"](tool["get_parser"]().parse_args(["--config", "phoenix_lvis.yaml", *arguments]))
    assert set(scores) == {"coarse_segm", "coarse_boundary", "segm", "boundary"}
    metrics = {"AP", "APr", "APc", "APf"}
    assert all(metrics <= set(figures) for figures in scores.values())
    assert all(0 < scores["coarse_segm"][metric] <= 100 for metric in metrics)


def test_a_detector_is_judged_before_and_after_refinement(registered, tmp_path, capsys):
    load_tool("prepare_cocofied_lvis")["main"]([])
    truth_file = registered / "lvis/lvis_v1_val_cocofied.json"
    truth = json.loads(truth_file.read_text())
    assert {c["id"] for c in truth["categories"]} == {1, 21}
    assert {a["category_id"] for a in truth["annotations"]} == {1, 21}
    assert len(DatasetCatalog.get("lvis_v1_val_cocofied")) == 3

    keys = ("image_id", "category_id", "segmentation", "bbox")
    detections = [{key: a[key] for key in keys} | {"score": 0.9} for a in truth["annotations"]]
    # a class that LVIS lacks: COCO's evaluation would call it wrong
    detections.append({**detections[0], "category_id": 58, "score": 1.0})
    source, refined = tmp_path / "coco_instances_results.json", tmp_path / "refined.json"
    source.write_text(json.dumps(detections))
    load_tool("refine_json")["main"]([
        "--refiner", "morphology", "--images", str(registered / "coco/val2017"), "--input", str(source),
        "--annotations", str(registered / "coco/annotations/instances_val2017.json"), "--output", str(refined),
    ])  # fmt: skip
    output = tmp_path / "scores.json"
    load_tool("evaluate_json")["main"]([
        "--style", "lvis", "--annotations", str(truth_file), "--results", str(source), str(refined),
        "--output", str(output),
    ])  # fmt: skip
    before, after = json.loads(output.read_text())["files"].values()
    assert before["segm"]["AP"] == before["boundary"]["AP"] == pytest.approx(100)
    assert 0 < after["boundary"]["AP"] < 100
    assert "Not judged: 1 results of " in capsys.readouterr().out


def test_pseudo_labels_of_lvis_as_an_annotation_file(registered, tmp_path):
    source, refined = registered / "lvis/lvis_v1_train.json", tmp_path / "refined.json"
    refine = load_tool("refine_json")["main"]
    command = ["--refiner", "morphology", "--images", str(registered / "coco"), "--input", str(source),
               "--output", str(refined)]  # fmt: skip
    for shard in ("1/2", "2/2"):
        refine([*command, "--shard", shard])
    refine([*command, "--resume"])
    before, after = (json.loads(path.read_text()) for path in (source, refined))
    assert [list(a) for a in after["annotations"]] == [list(a) for a in before["annotations"]]
    assert after["images"] == before["images"] and after["categories"] == before["categories"]

    output = tmp_path / "scores.json"
    load_tool("evaluate_json")["main"](
        [
            "--style",
            "lvis",
            "--annotations",
            str(source),
            "--results",
            str(source),
            str(refined),
            "--output",
            str(output),
        ]
    )
    perfect, other = json.loads(output.read_text())["files"].values()
    assert perfect["segm"]["AP"] == pytest.approx(100) and 0 < other["segm"]["AP"] < 100


def test_a_cocofied_file_that_nobody_made(registered, tmp_path):
    for name in ("lvis_v1_val_cocofied", "lvis_v1_train_cocofied"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_cocofied_lvis(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lvis_v1_val_cocofied\.json is missing: tools/prepare_cocofied_lvis"):
        DatasetCatalog.get("lvis_v1_val_cocofied")


def test_results_that_equal_the_ground_truth_are_perfect(registered, cfg, tmp_path):
    """LVIS' category ids begin with 1, Detectron2's classes with 0."""
    truth = json.loads((registered / "lvis/lvis_v1_val.json").read_text())
    keys = ("image_id", "category_id", "segmentation")
    results = [{key: annotation[key] for key in keys} | {"score": 1.0} for annotation in truth["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    cfg.DATASETS.TEST = ("lvis_v1_val",)
    cfg.DATASETS.COARSE_FILES_TEST = (str(tmp_path / "results.json"),)
    evaluator = BoundaryLVISEvaluator("lvis_v1_val", tasks=("segm",), output_dir=str(tmp_path))
    evaluator.reset()
    for batch in build_test_loader(cfg, "lvis_v1_val"):
        evaluator.process(batch, [{"instances": inputs["coarse_instances"]} for inputs in batch])
    scores = evaluator.evaluate()
    assert scores["segm"]["AP"] == scores["boundary"]["AP"] == pytest.approx(100)
