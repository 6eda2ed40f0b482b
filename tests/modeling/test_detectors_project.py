"""projects/MaskRCNN in small: trained, evaluated, and refined in three ways that agree."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("detectron2")

from phoenix_d2 import PhoenixRefiner
from projects.MaskRCNN.train_net import get_parser, main
from tools.refine_json import main as refine_json


@pytest.mark.usefixtures("restored_loggers")
def test_hook_config_and_file_agree(refiner, drawn_folder, tmp_path, monkeypatch):
    # windows are resized, and bytes not as floats are
    monkeypatch.setattr(refiner, "options", replace(refiner.options, zoom_below=2.0))
    weights, output = tmp_path / "refiner.safetensors", tmp_path / "output"
    PhoenixRefiner(refiner).save(weights)
    small = f"""MODEL.REFINER.WEIGHTS {weights} OUTPUT_DIR {output} SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 1
        INPUT.MIN_SIZE_TRAIN (96,) INPUT.MIN_SIZE_TEST 96 MODEL.RPN.POST_NMS_TOPK_TEST 10 TEST.DETECTIONS_PER_IMAGE 2
        MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0""".split()
    small += ["DATASETS.TRAIN", f"('{drawn_folder}',)", "DATASETS.TEST", f"('{drawn_folder}',)"]

    def run(*arguments):
        main(get_parser().parse_args([*arguments, *small]))

    def results(folder):
        return json.loads((output / folder / "coco_instances_results.json").read_text())

    run()
    evaluate = ["--eval-only", "MODEL.WEIGHTS", str(output / "model_final.pth")]
    coarse = results("coarse")
    run("--attach", str(weights), *evaluate)
    by_hook = results("refined")
    run(*evaluate, "MODEL.META_ARCHITECTURE", "RefinedDetector")
    by_config = results("refined")

    paths = {
        "images": f"{drawn_folder}/images",
        "annotations": f"{drawn_folder}/instances.json",
        "input": output / "coarse" / "coco_instances_results.json",
        "output": tmp_path / "refined.json",
        "weights": weights,
    }
    refine_json([word for key, path in paths.items() for word in (f"--{key}", str(path))])
    by_file = json.loads((tmp_path / "refined.json").read_text())
    assert len(coarse) == 12 and coarse != by_hook
    assert by_hook == by_config == by_file
